"""An iterator on a thread of its own: `Prefetcher`."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

_PATIENCE = 2.0


class Prefetcher(Generic[T]):
    """Takes items from an iterator on a thread of its own: one that waits to be taken, and one in the making.

    What the iterator raises is raised where the item would have been.
    """

    def __init__(self, items: Iterator[T]) -> None:
        self._items = items
        self._ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(maxsize=1)
        self._closing = False
        # A daemon: an iterator that waits for ever (a pipe) must keep no process from ending.
        self._thread = threading.Thread(target=self._run, name="gircse-read", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        while True:
            item, error = self._ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]  # there is one if there is no error

    def close(self) -> None:
        """Take no more items. An iterator that is busy is waited for a little, and left alone then."""
        self._closing = True
        while self._thread.is_alive() and not self._ready.empty():
            self._ready.get()
        self._thread.join(_PATIENCE)

    def _run(self) -> None:
        try:
            for item in self._items:
                self._ready.put((item, None))
                if self._closing:
                    return
            self._ready.put((None, StopIteration()))
        except BaseException as error:
            self._ready.put((None, error))
