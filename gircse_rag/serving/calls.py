"""Runs the blocking work of requests on threads: bounded, in time, and only while the client is there."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from fastapi import Request

from gircse_rag.serving.problems import CLIENT_CLOSED_REQUEST, RefusedError

T = TypeVar("T")

_LONGEST_RETRY_AFTER = 60


class Calls:
    """A queue of blocking work with a fixed number of threads.

    Work gets an event that is set when its result is no longer needed: the client hung up, the time is over, or the
    server stops. It must then end soon. Until it ends it counts as pending.

    Args:
        threads: amount of work done at once.
        queue: amount of work that may wait.
        timeout: seconds for one piece of work, the wait included.

    Attributes:
        completed: amount of work that has ended, failed or cancelled work included.
    """

    def __init__(self, *, threads: int, queue: int, timeout: float, name: str) -> None:
        self._executor = ThreadPoolExecutor(threads, name)
        self._threads = threads
        self._queue = queue
        self._timeout = timeout
        self._active: set[threading.Event] = set()  # one event per piece of pending work
        self._lock = threading.Lock()
        self._mean_seconds = 1.0
        self.completed = 0

    @property
    def pending(self) -> tuple[int, int]:
        """Amount of work under way, and amount that waits."""
        pending = len(self._active)
        return min(pending, self._threads), max(0, pending - self._threads)

    async def run(self, request: Request, work: Callable[[threading.Event], T]) -> T:
        """Run `work(cancelled)` on a thread and return its result.

        Raises:
            RefusedError: 429 if the queue is full, 504 after `timeout`, 499 if the client hung up.
        """
        cancelled = threading.Event()
        future = self._submit(cancelled, work)
        result = asyncio.wrap_future(future)
        result.add_done_callback(_retrieve)
        hung_up = asyncio.create_task(_wait_for_disconnect(request))
        try:
            either: set[asyncio.Future[Any]] = {result, hung_up}
            done, _ = await asyncio.wait(either, timeout=self._timeout, return_when=asyncio.FIRST_COMPLETED)
            if result in done:
                return result.result()
            if hung_up in done:
                raise RefusedError(CLIENT_CLOSED_REQUEST, "the client hung up")
            message = f"no answer within {self._timeout:g} seconds; send fewer inputs or fewer steps per request"
            raise RefusedError(504, message, code="timeout")
        finally:
            hung_up.cancel()
            cancelled.set()
            future.cancel()  # work that has not started never does

    def close(self) -> None:
        """Cancel all work and wait for its end."""
        with self._lock:
            for event in self._active:
                event.set()
        self._executor.shutdown(cancel_futures=True)

    def _submit(self, cancelled: threading.Event, work: Callable[[threading.Event], T]) -> Future[T]:
        with self._lock:
            waiting = len(self._active) - self._threads
            if waiting >= self._queue:
                seconds = min(_LONGEST_RETRY_AFTER, max(1, math.ceil(self._mean_seconds * waiting / self._threads)))
                message = f"the server is busy: {waiting} requests wait; try again in {seconds} seconds"
                raise RefusedError(429, message, code="busy", Retry_After=str(seconds))
            self._active.add(cancelled)

        def run() -> T:
            started = time.monotonic()
            try:
                return work(cancelled)
            finally:
                self._mean_seconds += 0.1 * (time.monotonic() - started - self._mean_seconds)

        def end(_: Future[T]) -> None:
            with self._lock:
                self._active.discard(cancelled)
                self.completed += 1

        future = self._executor.submit(run)
        future.add_done_callback(end)
        return future


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _retrieve(result: asyncio.Future[Any]) -> None:
    """Look at an error that nobody waits for any more, so that asyncio does not log it."""
    if not result.cancelled():
        result.exception()
