"""Repeat failed requests to a store with `Retry`.

    repeated       time-outs, dropped connections, HTTP 408, 429 and 5xx, and accepted but unconfirmed writes
    not repeated   any other 4xx (a wrong key stays wrong), and a server that never answered (a wrong url)

Waits follow gircse_rag/backoff.py. All requests are idempotent: they write the same points under the same ids.
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

_RETRIED_GRPC = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.INTERNAL,
    }
)
_CONNECT_ERRORS = (httpx.ConnectError, httpx.ConnectTimeout)

P = ParamSpec("P")
T = TypeVar("T")


class StoppedError(GircseError):
    """Raised for a call made after `stopped_by_errors` stopped all calls; nobody uses its result."""


class _UnconfirmedError(Exception):
    """The store accepted a write but did not confirm it."""


class Retry:
    """Calls methods of a store with retries, one call at a time, so that a call in progress can be waited for.

    Attributes:
        repeated: number of retries, over all calls.
    """

    def __init__(self, store: str, deadline: float = DEADLINE) -> None:
        """Args:
        store: name of the store in error messages.
        deadline: seconds from the first attempt of a call to its last.
        """
        self.repeated = 0
        self._store = store
        self._deadline = deadline
        self._answered = False
        self._lock = threading.Lock()
        self._stopping = threading.Event()

    def __call__(self, method: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `method` until it succeeds. Writes must be idempotent.

        Raises:
            StoreError: the call still failed at the deadline; says how often it was tried and the last error.
            StoppedError: an error elsewhere stopped all calls (`stopped_by_errors`).
            Exception: any error of `method` that a retry would not fix.
        """

        def attempt() -> T:
            with self._lock:
                if self._stopping.is_set():
                    raise StoppedError("stopped")
                result = method(*args, **kwargs)
            self._answered = True
            if isinstance(result, models.UpdateResult) and result.status != models.UpdateStatus.COMPLETED:
                raise _UnconfirmedError(f"it accepted a write but did not confirm it ({result.status.value})")
            return result

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(self._is_retryable),
            wait=wait_with_backoff(_retry_after),
            stop=tenacity.stop_before_delay(self._deadline),
            sleep=tenacity.nap.sleep_using_event(self._stopping),
            before_sleep=self._count_retry,
        )
        try:
            return retrying(attempt)
        except tenacity.RetryError as error:
            last = error.last_attempt
            raise StoreError(
                f"{self._store} failed {last.attempt_number} times in a row (within {self._deadline:g} s), last with "
                f"{_describe(last.exception())}; earlier writes are safe: once the store is healthy, run again"
            ) from last.exception()

    @contextmanager
    def stopped_by_errors(self) -> Iterator[None]:
        """On an error in the block, stop all calls: wait for the one in progress and refuse new ones."""
        try:
            yield
        except BaseException:
            self._stopping.set()
            with self._lock:
                pass
            raise

    def _count_retry(self, _: tenacity.RetryCallState) -> None:
        with self._lock:
            self.repeated += 1

    def _is_retryable(self, error: BaseException) -> bool:
        if isinstance(error, UnexpectedResponse):
            self._answered = True
            return error.status_code is not None and (error.status_code in RETRIED_STATUS or error.status_code >= 500)
        if isinstance(error, ResponseHandlingException):
            never_connected = isinstance(error.source, _CONNECT_ERRORS) and not self._answered
            return isinstance(error.source, httpx.TransportError) and not (
                never_connected or isinstance(error.source, CLIENT_FAULTS)
            )
        if isinstance(error, grpc.RpcError):
            code = error.code() if isinstance(error, grpc.Call) else None
            return code in _RETRIED_GRPC and (self._answered or code is not grpc.StatusCode.UNAVAILABLE)
        return isinstance(error, _UnconfirmedError | QdrantException)  # QdrantException: 429 with a Retry-After


def _retry_after(state: tenacity.RetryCallState) -> float:
    """Seconds that the store requested to wait, or 0."""
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, ResourceExhaustedResponse):
        return float(error.retry_after_s)
    if isinstance(error, UnexpectedResponse):
        return parse_retry_after(error.headers.get("Retry-After", ""))
    # qdrant_client cannot parse a date; its error message quotes the header
    return parse_retry_after(str(error).partition("not a valid integer: ")[2])


def answer_text(error: UnexpectedResponse) -> str:
    """What the server says in its answer, shortened, or else the name of the HTTP status."""
    return error.content[:200].decode(errors="replace").strip() or error.reason_phrase


def _describe(error: BaseException | None) -> str:
    if isinstance(error, ResourceExhaustedResponse):
        return f"HTTP 429 ({error}; it asked to wait {error.retry_after_s} s)"
    if isinstance(error, UnexpectedResponse):
        return f"HTTP {error.status_code} ({answer_text(error)})"
    if isinstance(error, ResponseHandlingException):
        return f"{type(error.source).__name__}: {error.source}"
    if isinstance(error, grpc.Call):
        return f"{error.code().name}: {error.details()}"
    return str(error)
