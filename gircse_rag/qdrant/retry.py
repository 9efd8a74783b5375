"""Asking a store again where that helps: `Retry`.

    asked again   time-outs, dropped connections, HTTP 408, 429 and 5xx, and a write that was accepted and not confirmed
    not           every other 4xx (a wrong key stays wrong), and a server that never answered once (a wrong url)

Waits grow exponentially with full jitter (Brooker, "Exponential Backoff And Jitter", 2015), and are never shorter than
the Retry-After of the answer. Every request of ours may be sent twice: the same points under the same ids.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from typing import ParamSpec, TypeVar

import grpc
import httpx
import tenacity
from qdrant_client import models
from qdrant_client.common.client_exceptions import QdrantException, ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from gircse_rag.errors import GircseError, StoreError

DEADLINE = 300.0
"""Seconds after which a request that keeps failing is given up: longer than a server takes to restart."""
_FIRST_WAIT, _LONGEST_WAIT = 0.25, 30.0

_AGAIN = frozenset({408, 429})
_AGAIN_GRPC = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.INTERNAL,
    }
)
_NOBODY_THERE = (httpx.ConnectError, httpx.ConnectTimeout)
_OUR_FAULT = (httpx.UnsupportedProtocol, httpx.LocalProtocolError)

P = ParamSpec("P")
T = TypeVar("T")


class StoppedError(GircseError):
    """Raised in a thread that asks for something after all was stopped; nobody waits for its answer any more."""


class _UnconfirmedError(Exception):
    """The store took a write and did not say that it is done."""


class Retry:
    """Calls a store's methods: one at a time, so that the one under way can be waited for, and again where that helps.

    Attributes:
        repeated: attempts beyond the first, over all calls.
    """

    def __init__(self, store: str, deadline: float = DEADLINE) -> None:
        """Args:
        store: what errors call it.
        deadline: seconds from the first attempt of a call to its last.
        """
        self.repeated = 0
        self._store = store
        self._deadline = deadline
        self._answered = False
        self._lock = threading.Lock()
        self._stopping = threading.Event()

    def __call__(self, method: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `method` until it succeeds. One that writes must not mind being called twice.

        Raises:
            StoreError: it still failed at the deadline; says how often it was tried, and how it failed last.
            StoppedError: an error elsewhere ended it all (`stopped_by_errors`).
            Exception: whatever else `method` raises that another attempt would not mend.
        """

        def attempt() -> T:
            with self._lock:
                if self._stopping.is_set():
                    raise StoppedError("stopped")
                result = method(*args, **kwargs)
            self._answered = True
            if isinstance(result, models.UpdateResult) and result.status != models.UpdateStatus.COMPLETED:
                raise _UnconfirmedError(f"it accepted a write and did not confirm it ({result.status.value})")
            return result

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(self._helps),
            wait=_wait,
            stop=tenacity.stop_before_delay(self._deadline),
            sleep=tenacity.nap.sleep_using_event(self._stopping),
            before_sleep=self._count,
        )
        try:
            return retrying(attempt)
        except tenacity.RetryError as error:
            last = error.last_attempt
            raise StoreError(
                f"{self._store} failed {last.attempt_number} times in a row (within {self._deadline:g} s), the last: "
                f"{_said(last.exception())}; what was written before is safe: once the store is well, run again"
            ) from last.exception()

    @contextmanager
    def stopped_by_errors(self) -> Iterator[None]:
        """An error in the block ends all calls: none begins any more, and the one under way is waited for."""
        try:
            yield
        except BaseException:
            self._stopping.set()
            with self._lock:
                pass
            raise

    def _count(self, _: tenacity.RetryCallState) -> None:
        with self._lock:
            self.repeated += 1

    def _helps(self, error: BaseException) -> bool:
        """Whether another attempt may succeed."""
        if isinstance(error, UnexpectedResponse):
            self._answered = True
            return error.status_code is not None and (error.status_code in _AGAIN or error.status_code >= 500)
        if isinstance(error, ResponseHandlingException):
            nobody = isinstance(error.source, _NOBODY_THERE) and not self._answered
            return isinstance(error.source, httpx.TransportError) and not (
                nobody or isinstance(error.source, _OUR_FAULT)
            )
        if isinstance(error, grpc.RpcError):
            code = error.code() if isinstance(error, grpc.Call) else None
            return code in _AGAIN_GRPC and (self._answered or code is not grpc.StatusCode.UNAVAILABLE)
        return isinstance(error, _UnconfirmedError | QdrantException)  # QdrantException: 429 with a Retry-After


def _wait(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    backoff = tenacity.wait_random_exponential(multiplier=_FIRST_WAIT, max=_LONGEST_WAIT)(state)
    # A little more than asked for: else all who were turned away come back at once.
    return max(backoff, _retry_after(error) * random.uniform(1, 1.1))


def _retry_after(error: BaseException | None) -> float:
    """Seconds that the store asked to wait, or 0."""
    if isinstance(error, ResourceExhaustedResponse):
        return float(error.retry_after_s)
    if isinstance(error, UnexpectedResponse):
        value = error.headers.get("Retry-After", "")
    else:  # the client reads no date there, and says so
        value = str(error).partition("not a valid integer: ")[2]
    try:
        return float(value) if value.isdigit() else max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return 0.0


def _said(error: BaseException | None) -> str:
    if isinstance(error, ResourceExhaustedResponse):
        return f"HTTP 429 ({error}; it asked to wait {error.retry_after_s} s)"
    if isinstance(error, UnexpectedResponse):
        content = error.content[:200].decode(errors="replace").strip()
        return f"HTTP {error.status_code} ({content or error.reason_phrase})"
    if isinstance(error, ResponseHandlingException):
        return f"{type(error.source).__name__}: {error.source}"
    if isinstance(error, grpc.Call):
        return f"{error.code().name}: {error.details()}"
    return str(error)
