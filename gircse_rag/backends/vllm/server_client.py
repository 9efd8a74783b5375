"""ServerBackend: a running server (`gircse serve`) behind the Backend protocol."""

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

from gircse_rag.backend import CLOSED, Refinement, Request, check_process
from gircse_rag.backends.vllm.in_process import Numbered, Outcomes, last_step_refinement, split_supported
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
from gircse_rag.urls import read_credentials

BATCH = 64
"""Inputs per HTTP request."""
IN_FLIGHT = 4
"""Maximum concurrent HTTP requests of a call: enough that the server always has some waiting."""
CONNECT_DEADLINE = 2.0
"""Like DEADLINE, for the first contact: a server that has never answered is probably not running."""
MODEL_CHECK_INTERVAL = 5.0
"""Seconds after an answer during which the model is not checked again: too short for a restart with another model."""


class ServerBackend:
    """Refines requests over HTTP. Sends token ids, so the server's tokenizer does not matter.

    A request is repeated for up to DEADLINE seconds if the server does not answer or is too busy. If the server's model
    changes, calls end with SpecMismatchError.

    Args:
        url: the server's address, with or without /v1. If the server requires a key, set GIRCSE_API_KEY or
            VLLM_API_KEY here too. A user and password in it are sent as HTTP basic authentication, instead of the key.

    Attributes:
        spec: the server's vector space.

    Raises:
        InputError: `url` is not a URL.
        GircseError: nothing answers at `url`, or a server without GIRCSE.
    """

    def __init__(self, url: str) -> None:
        address, basic, key = read_credentials(
            url, "GIRCSE_API_KEY" if "GIRCSE_API_KEY" in os.environ else "VLLM_API_KEY"
        )
        self._url = address.rstrip("/").removesuffix("/v1")
        authorization = basic or (f"Bearer {key}" if key else None)
        try:
            self._http = httpx.Client(
                base_url=self._url,
                headers={"Authorization": authorization} if authorization else {},
                timeout=httpx.Timeout(600, connect=10),
            )
        except httpx.InvalidURL as error:
            raise InputError(f"{self._url!r} is no URL ({error}); write http://host:8000") from error
        self._closed = threading.Event()
        self._process = os.getpid()
        self._failing_since: float | None = None
        self._last_failure = 0.0
        self._model_confirmed = 0.0  # time at which the server was last known to have this model
        try:
            info = self._parse_json(self._send_with_retries(CONNECT_DEADLINE, lambda: self._http.get("/v1/gircse")))
            models = self._parse_json(self._send_with_retries(CONNECT_DEADLINE, lambda: self._http.get("/v1/models")))
            with self._check_structure():
                self.spec = _parse_spec(info)
                self._window = int(info["window"])
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
                check_process(self._process)
                if self._closed.is_set():
                    raise GircseError(CLOSED)
                while waiting < IN_FLIGHT and (batch := list(islice(numbered, BATCH))):
                    # daemon threads: a caller or process that stops early does not wait for their answers
                    threading.Thread(target=self._run_batch, args=(batch, answers, abandoned), daemon=True).start()
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
        if os.getpid() != self._process:  # the connections are the other process's too
            return
        self._closed.set()
        self._http.close()

    def _run_batch(
        self, batch: Numbered, answers: SimpleQueue[Outcomes | BaseException], abandoned: threading.Event
    ) -> None:
        try:
            good, outcomes = split_supported(batch, self._window)
            answers.put(outcomes + (self._post(good, abandoned) if good else []))
        except BaseException as error:  # re-raised in the caller's thread
            answers.put(error)

    def _post(self, batch: Numbered, abandoned: threading.Event) -> Outcomes:
        body = {
            "model": self._model,
            "input": [request.token_ids for _, request in batch],
            "tokenizer": self.spec.tokenizer_hash,
            "steps": [request.steps for _, request in batch],
            "encoding_format": "base64",
            "endianness": "little",
        }

        def send() -> httpx.Response:
            if abandoned.is_set():
                raise GircseError("the call was abandoned; its answer is no longer needed")
            if time.monotonic() - self._model_confirmed > MODEL_CHECK_INTERVAL:
                info = self._http.get("/v1/gircse")
                if info.status_code in RETRIED_STATUS:
                    return info
                self._check_model(info)
            return self._http.post("/v1/embeddings", json=body)

        try:
            response = self._send_with_retries(DEADLINE, send)
            if response.status_code == httpx.codes.BAD_REQUEST and len(batch) > 1:  # find the bad input
                return [outcome for one in batch for outcome in self._post([one], abandoned)]
            answer = self._parse_json(response)
            with self._check_structure():
                pairs = zip(batch, answer["data"], strict=True)
                return [(index, self._refinement(entry, request.steps)) for (index, request), entry in pairs]
        except SpecMismatchError:  # ends the call: none of its texts can be embedded any more
            raise
        except GircseError as error:
            return [(index, error) for index, _ in batch]

    def _refinement(self, entry: Any, steps: int) -> Refinement | GircseError:
        vector = np.frombuffer(base64.b64decode(entry["embedding"]), dtype="<f4").astype(np.float32)
        if len(vector) != self.dimension:
            raise SpecMismatchError(
                f"{self._url} returned a vector of {len(vector)} numbers, not {self.dimension}: its model has changed; "
                "load the embedder again"
            )
        return last_step_refinement(vector, steps)

    def _check_model(self, response: httpx.Response) -> None:
        info = self._parse_json(response)
        with self._check_structure():
            spec = _parse_spec(info)
        if spec.fingerprint != self.spec.fingerprint:
            raise SpecMismatchError(
                f"{self._url} now serves {spec.describe()}, but served {self.spec.describe()} when this embedder was "
                "loaded; load the embedder again, and embed again all texts that are to be compared"
            )

    def _send_with_retries(self, deadline: float, send: Callable[[], httpx.Response]) -> httpx.Response:
        """Send a request, and repeat it where that may help, until failures last `deadline` seconds.

        Raises:
            GircseError: the server did not answer, or the backend was closed.
        """

        def attempt() -> httpx.Response:
            try:
                response = send()
            except httpx.TransportError:
                self._record_failure()
                raise
            if response.status_code in RETRIED_STATUS:
                self._record_failure()
            else:
                self._failing_since, self._model_confirmed = None, time.monotonic()
            return response

        def stop(state: tenacity.RetryCallState) -> bool:
            # Failures of all threads count together, so that not every batch waits for a dead server on its own.
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
        except RuntimeError as error:  # raised by a closed httpx client
            raise GircseError(CLOSED) from error
        except httpx.HTTPError as error:
            raise GircseError(
                f"no answer from {self._url} ({type(error).__name__}: {error}); is it running?"
            ) from error

    def _record_failure(self) -> None:
        now = time.monotonic()
        if self._failing_since is None or now - self._last_failure > 2 * LONGEST_WAIT:  # earlier failures have ended
            self._failing_since = now
        self._last_failure, self._model_confirmed = now, 0.0

    def _parse_json(self, response: httpx.Response) -> Any:
        if response.status_code == httpx.codes.NOT_FOUND and response.url.path == "/v1/gircse":
            raise GircseError(
                f"{self._url} serves no GIRCSE model, or runs without our plugin; start it with `gircse serve`, or "
                "vLLM with VLLM_PLUGINS=gircse"
            )
        if response.is_redirect:
            where = response.headers.get("Location", "an unknown address")
            raise GircseError(f"{self._url} answered {response.status_code}: it is now at {where}; use that url")
        if response.is_error:
            kind = InputError if response.status_code == httpx.codes.BAD_REQUEST else GircseError
            raise kind(f"{self._url} answered {response.status_code}: {response.text[:300]}")
        try:
            return response.json()
        except ValueError as error:
            raise GircseError(
                f"{self._url} answered {response.text[:200]!r}, which is not JSON; is it the url of a `gircse serve`?"
            ) from error

    @contextmanager
    def _check_structure(self) -> Iterator[None]:
        """Turn an error while an answer is parsed into a GircseError that says so."""
        try:
            yield
        except GircseError:
            raise
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise GircseError(
                f"{self._url} answered in a form that this version does not know ({type(error).__name__}: {error}); "
                "use the same version of gircse-rag on the server and here"
            ) from error


def _retry_after(state: tenacity.RetryCallState) -> float:
    """Seconds that the server's answer asks to wait, or 0."""
    if state.outcome is None or state.outcome.failed:
        return 0.0
    return parse_retry_after(state.outcome.result().headers.get("Retry-After", ""))


def _parse_spec(info: Any) -> EmbeddingSpec:
    return EmbeddingSpec.from_dict({**info["spec"], "dtype": info["dtype"]})
