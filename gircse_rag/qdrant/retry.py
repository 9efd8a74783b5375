"""Asking a store again where that helps: `Retry`.

    asked again   time-outs, dropped connections, HTTP 408, 429 and 5xx, and a write that was accepted and not confirmed
    not           every other 4xx (a wrong key stays wrong), and a server that never answered once (a wrong url)

The waits are those of gircse_rag/backoff.py. Every request of ours may be sent twice: the same points under the same
ids.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import grpc
import httpx
import tenacity
from qdrant_client import models
from qdrant_client.common.client_exceptions import QdrantException, ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from gircse_rag.backoff import CLIENT_FAULTS, DEADLINE, RETRIED_STATUS, parse_retry_after, wait_with_backoff
from gircse_rag.errors import GircseError, StoreError

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
            wait=wait_with_backoff(_retry_after),
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
                f"{_describe(last.exception())}; what was written before is safe: once the store is well, run again"
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
            return error.status_code is not None and (error.status_code in RETRIED_STATUS or error.status_code >= 500)
        if isinstance(error, ResponseHandlingException):
            nobody = isinstance(error.source, _NOBODY_THERE) and not self._answered
            return isinstance(error.source, httpx.TransportError) and not (
                nobody or isinstance(error.source, CLIENT_FAULTS)
            )
        if isinstance(error, grpc.RpcError):
            code = error.code() if isinstance(error, grpc.Call) else None
            return code in _AGAIN_GRPC and (self._answered or code is not grpc.StatusCode.UNAVAILABLE)
        return isinstance(error, _UnconfirmedError | QdrantException)  # QdrantException: 429 with a Retry-After


def _retry_after(state: tenacity.RetryCallState) -> float:
    """Seconds that the store asked to wait, or 0."""
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, ResourceExhaustedResponse):
        return float(error.retry_after_s)
    if isinstance(error, UnexpectedResponse):
        return parse_retry_after(error.headers.get("Retry-After", ""))
    # qdrant_client cannot parse a date; its error message quotes the header
    return parse_retry_after(str(error).partition("not a valid integer: ")[2])


def _describe(error: BaseException | None) -> str:
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
