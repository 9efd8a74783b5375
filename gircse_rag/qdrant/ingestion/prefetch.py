"""An iterator that works ahead on its own thread: `Prefetcher`."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

_CLOSE_TIMEOUT = 2.0  # seconds


class Prefetcher(Generic[T]):
    """Iterates on its own thread, at most two items ahead: one is ready, and the next is being made.

    An exception of the iterator is raised to the consumer in place of the item.
    """

    def __init__(self, items: Iterator[T]) -> None:
        self._items = items
        self._ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(maxsize=1)
        self._closing = False
        # A daemon thread: an iterator that blocks for ever (a pipe) must not keep the process alive.
        self._thread = threading.Thread(target=self._run, name="gircse-read", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        while True:
            item, error = self._ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]  # an item is set if there is no error

    def close(self) -> None:
        """Stop iterating. Waits up to two seconds for an item that is being made, then abandons the thread."""
        self._closing = True
        while self._thread.is_alive() and not self._ready.empty():
            self._ready.get()
        self._thread.join(_CLOSE_TIMEOUT)

    def _run(self) -> None:
        try:
            for item in self._items:
                self._ready.put((item, None))
                if self._closing:
                    return
            self._ready.put((None, StopIteration()))
        except BaseException as error:
            self._ready.put((None, error))
