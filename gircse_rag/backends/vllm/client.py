"""ServerBackend: a running server (`gircse serve`), behind the Backend protocol."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import Any

import httpx
import numpy as np

from gircse_rag.backends.base import Refinement, Request
from gircse_rag.backends.vllm.backend import check, refinement
from gircse_rag.errors import GircseError, InputError
from gircse_rag.spec import EmbeddingSpec

BATCH = 64
"""Inputs of one HTTP request."""
IN_FLIGHT = 4
"""HTTP requests at once: enough that the server always has some waiting."""

Numbered = list[tuple[int, Request]]
Outcomes = list[tuple[int, Refinement | GircseError]]


class ServerBackend:
    """Refines requests over HTTP. Sends token ids, so what the server tokenises with does not matter.

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
            transport=httpx.HTTPTransport(retries=3),
        )
        try:
            known = self._json(self._send("GET", "/v1/gircse"))
            self._model = self._json(self._send("GET", "/v1/models"))["data"][0]["id"]
            self.spec = EmbeddingSpec.from_dict({**known["spec"], "dtype": known["dtype"]})
            self._window = int(known["window"])
        except (KeyError, IndexError, TypeError) as error:
            raise GircseError(f"{self._url} answered in a form that this version does not know: {error}") from error

    @property
    def dimension(self) -> int:
        return self.spec.dimension

    def refine(self, requests: Iterable[Request]) -> Iterator[tuple[int, Refinement | GircseError]]:
        numbered = enumerate(requests)
        pool = ThreadPoolExecutor(IN_FLIGHT)
        waiting: set[Future[Outcomes]] = set()
        try:
            while True:
                while len(waiting) < IN_FLIGHT and (batch := list(islice(numbered, BATCH))):
                    waiting.add(pool.submit(self._embed, batch))
                if not waiting:
                    return
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    yield from future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        self._http.close()

    def _embed(self, batch: Numbered) -> Outcomes:
        outcomes: Outcomes = []
        good: Numbered = []
        for index, request in batch:
            try:
                check(request, self._window)
            except InputError as error:
                outcomes.append((index, error))
            else:
                good.append((index, request))
        return outcomes + self._post(good)

    def _post(self, batch: Numbered) -> Outcomes:
        if not batch:
            return []
        body = {
            "model": self._model,
            "input": [request.token_ids for _, request in batch],
            "steps": [request.steps for _, request in batch],
            "encoding_format": "base64",
            "endianness": "little",
        }
        response = self._send("POST", "/v1/embeddings", json=body)
        if response.status_code == httpx.codes.BAD_REQUEST and len(batch) > 1:  # one bad input must not spoil the rest
            return [outcome for one in batch for outcome in self._post([one])]
        try:
            data = self._json(response)["data"]
            vectors = [np.frombuffer(base64.b64decode(entry["embedding"]), dtype="<f4") for entry in data]
            return [
                (index, refinement(vector.astype(np.float32), request.steps))
                for (index, request), vector in zip(batch, vectors, strict=True)
            ]
        except GircseError as error:
            return [(index, error) for index, _ in batch]

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            return self._http.request(method, path, **options)
        except RuntimeError as error:  # httpx says so of a client that was closed
            raise GircseError("this embedder is closed; load a new one with Embedder.from_pretrained") from error
        except httpx.HTTPError as error:
            raise GircseError(
                f"no answer from {self._url} ({type(error).__name__}: {error}); is it running?"
            ) from error

    def _json(self, response: httpx.Response) -> Any:
        if response.status_code == httpx.codes.NOT_FOUND and response.url.path == "/v1/gircse":
            raise GircseError(
                f"{self._url} serves no GIRCSE model, or without our plugin; start it with `gircse serve`, or with "
                "VLLM_PLUGINS=gircse"
            )
        if response.is_error:
            kind = InputError if response.status_code == httpx.codes.BAD_REQUEST else GircseError
            raise kind(f"{self._url} answered {response.status_code}: {response.text[:300]}")
        return response.json()
