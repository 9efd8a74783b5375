"""ServerBackend: a running server (`gircse serve`), behind the Backend protocol."""

from __future__ import annotations

import base64
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from queue import SimpleQueue
from typing import Any

import httpx
import numpy as np
import tenacity

from gircse_rag.backend import Refinement, Request
from gircse_rag.backends.vllm.in_process import check, refinement
from gircse_rag.backoff import (
    CLIENT_FAULTS,
    DEADLINE,
    LONGEST_WAIT,
    RETRIED_STATUS,
    parse_retry_after,
    wait_with_backoff,
)
from gircse_rag.errors import GircseError, InputError, SpecMismatchError
from gircse_rag.spec import EmbeddingSpec

BATCH = 64
"""Inputs of one HTTP request."""
IN_FLIGHT = 4
"""HTTP requests at once: enough that the server always has some waiting."""
START_DEADLINE = 2.0
"""The same for one that has yet to answer: it is rather not there."""
SAME = 5.0
"""Seconds after an answer for which the server is taken to have the same model: too few to be started again in."""
_CLOSED = "this embedder is closed; load a new one with Embedder.from_pretrained"

Numbered = list[tuple[int, Request]]
Outcomes = list[tuple[int, Refinement | GircseError]]


class ServerBackend:
    """Refines requests over HTTP. Sends token ids, so what the server tokenises with does not matter.

    A request that the server did not answer, or was too busy for, is sent again for up to DEADLINE seconds. A server
    that has another model than when this backend was made ends the call, SpecMismatchError, whatever its texts.

    Args:
        url: of the server, with or without /v1. If it asks for a key, set VLLM_API_KEY, as for the server.

    Attributes:
        spec: the server's vector space.

    Raises:
        GircseError: no server answers there, or not one of `gircse serve`.
    """

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/").removesuffix("/v1")
        key = os.environ.get("VLLM_API_KEY")
        self._http = httpx.Client(
            base_url=self._url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(600, connect=10),
        )
        self._closed = threading.Event()
        self._failing_since: float | None = None
        self._last_failure = 0.0
        self._same = 0.0  # when the server was last known to have this model
        try:
            known = self._json(self._again(START_DEADLINE, lambda: self._http.get("/v1/gircse")))
            models = self._json(self._again(START_DEADLINE, lambda: self._http.get("/v1/models")))
            with self._check_form():
                self.spec = _spec(known)
                self._window = int(known["window"])
                self._model = models["data"][0]["id"]
        except BaseException:
            self._http.close()
            raise

    @property
    def dimension(self) -> int:
        return self.spec.dimension

    def refine(self, requests: Iterable[Request]) -> Iterator[tuple[int, Refinement | GircseError]]:
        numbered = enumerate(requests)
        answers: SimpleQueue[Outcomes | BaseException] = SimpleQueue()
        abandoned = threading.Event()
        waiting = 0
        try:
            while True:
                if self._closed.is_set():
                    raise GircseError(_CLOSED)
                while waiting < IN_FLIGHT and (batch := list(islice(numbered, BATCH))):
                    # a daemon: whoever gives up a call, or the process, does not wait for its answers
                    threading.Thread(target=self._work, args=(batch, answers, abandoned), daemon=True).start()
                    waiting += 1
                if not waiting:
                    return
                outcomes = answers.get()
                waiting -= 1
                if isinstance(outcomes, BaseException):
                    raise outcomes
                yield from outcomes
        finally:
            abandoned.set()

    def close(self) -> None:
        self._closed.set()
        self._http.close()

    def _work(
        self, batch: Numbered, answers: SimpleQueue[Outcomes | BaseException], abandoned: threading.Event
    ) -> None:
        try:
            answers.put(self._embed(batch, abandoned))
        except BaseException as error:  # for the caller to see
            answers.put(error)

    def _embed(self, batch: Numbered, abandoned: threading.Event) -> Outcomes:
        outcomes: Outcomes = []
        good: Numbered = []
        for index, request in batch:
            try:
                check(request, self._window)
            except InputError as error:
                outcomes.append((index, error))
            else:
                good.append((index, request))
        return outcomes + (self._post(good, abandoned) if good else [])

    def _post(self, batch: Numbered, abandoned: threading.Event) -> Outcomes:
        body = {
            "model": self._model,
            "input": [request.token_ids for _, request in batch],
            "steps": [request.steps for _, request in batch],
            "encoding_format": "base64",
            "endianness": "little",
        }

        def ask() -> httpx.Response:
            if abandoned.is_set():
                raise GircseError("nobody waits for the answer any more")
            if time.monotonic() - self._same > SAME:
                known = self._http.get("/v1/gircse")
                if known.status_code in RETRIED_STATUS:
                    return known
                self._check_same(known)
            return self._http.post("/v1/embeddings", json=body)

        try:
            response = self._again(DEADLINE, ask)
            if response.status_code == httpx.codes.BAD_REQUEST and len(batch) > 1:  # one bad input must not spoil all
                return [outcome for one in batch for outcome in self._post([one], abandoned)]
            answer = self._json(response)
            with self._check_form():
                pairs = zip(batch, answer["data"], strict=True)
                return [(index, self._refinement(entry, request.steps)) for (index, request), entry in pairs]
        except SpecMismatchError:  # no text of this call can be embedded any more
            raise
        except GircseError as error:
            return [(index, error) for index, _ in batch]

    def _refinement(self, entry: Any, steps: int) -> Refinement | GircseError:
        vector = np.frombuffer(base64.b64decode(entry["embedding"]), dtype="<f4").astype(np.float32)
        if len(vector) != self.dimension:
            raise SpecMismatchError(
                f"{self._url} answered a vector of {len(vector)} numbers, not {self.dimension}: it has another model "
                "now; load the embedder again"
            )
        return refinement(vector, steps)

    def _check_same(self, response: httpx.Response) -> None:
        known = self._json(response)
        with self._check_form():
            spec = _spec(known)
        if spec.fingerprint != self.spec.fingerprint:
            raise SpecMismatchError(
                f"{self._url} serves {spec.describe()} now, and served {self.spec.describe()} when this embedder was "
                "loaded; load it again, and embed again what is to be compared"
            )

    def _again(self, deadline: float, ask: Callable[[], httpx.Response]) -> httpx.Response:
        """The server's answer; it is asked again where that may help, until `deadline` seconds of failures.

        Raises:
            GircseError: there was none, or the backend was closed.
        """

        def attempt() -> httpx.Response:
            try:
                response = ask()
            except httpx.TransportError:
                self._failed()
                raise
            if response.status_code in RETRIED_STATUS:
                self._failed()
            else:
                self._failing_since, self._same = None, time.monotonic()
            return response

        def stop(state: tenacity.RetryCallState) -> bool:
            # Failures of all threads count: of a server that is gone each batch need not find out for itself.
            failing = time.monotonic() - (self._failing_since or time.monotonic())
            return max(failing, state.seconds_since_start or 0) + state.upcoming_sleep >= deadline

        retrying = tenacity.Retrying(
            retry=tenacity.retry_any(
                tenacity.retry_if_exception(
                    lambda error: isinstance(error, httpx.TransportError) and not isinstance(error, CLIENT_FAULTS)
                ),
                tenacity.retry_if_result(lambda response: response.status_code in RETRIED_STATUS),
            ),
            wait=wait_with_backoff(_retry_after),
            stop=stop,
            sleep=tenacity.nap.sleep_using_event(self._closed),
            retry_error_callback=lambda state: state.outcome.result() if state.outcome else None,
        )
        try:
            return retrying(attempt)
        except RuntimeError as error:  # httpx says so of a client that was closed
            raise GircseError(_CLOSED) from error
        except httpx.HTTPError as error:
            raise GircseError(
                f"no answer from {self._url} ({type(error).__name__}: {error}); is it running?"
            ) from error

    def _failed(self) -> None:
        now = time.monotonic()
        if self._failing_since is None or now - self._last_failure > 2 * LONGEST_WAIT:  # what was long ago is over
            self._failing_since = now
        self._last_failure, self._same = now, 0.0

    def _json(self, response: httpx.Response) -> Any:
        if response.status_code == httpx.codes.NOT_FOUND and response.url.path == "/v1/gircse":
            raise GircseError(
                f"{self._url} serves no GIRCSE model, or without our plugin; start it with `gircse serve`, or with "
                "VLLM_PLUGINS=gircse"
            )
        if response.is_redirect:
            where = response.headers.get("Location", "an address that it does not name")
            raise GircseError(f"{self._url} answered {response.status_code}: it is now at {where}; use that url")
        if response.is_error:
            kind = InputError if response.status_code == httpx.codes.BAD_REQUEST else GircseError
            raise kind(f"{self._url} answered {response.status_code}: {response.text[:300]}")
        try:
            return response.json()
        except ValueError as error:
            raise GircseError(
                f"{self._url} answered no JSON but {response.text[:200]!r}; is that url `gircse serve`'s?"
            ) from error

    @contextmanager
    def _check_form(self) -> Iterator[None]:
        """Turn what goes wrong in the block, where an answer is taken apart, into an error that says so."""
        try:
            yield
        except GircseError:
            raise
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise GircseError(
                f"{self._url} answered in a form that this version does not know ({type(error).__name__}: {error}); "
                "are gircse-rag there and here of one version?"
            ) from error


def _retry_after(state: tenacity.RetryCallState) -> float:
    """Seconds that the server asked to wait, or 0."""
    if state.outcome is None or state.outcome.failed:
        return 0.0
    return parse_retry_after(state.outcome.result().headers.get("Retry-After", ""))


def _spec(known: Any) -> EmbeddingSpec:
    return EmbeddingSpec.from_dict({**known["spec"], "dtype": known["dtype"]})
