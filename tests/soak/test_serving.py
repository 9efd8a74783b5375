"""Random requests to a server: good, malformed, oversized, hung up, slow.

GIRCSE_SOAK_REQUESTS sets their number.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from gircse_rag import Embedder
from gircse_rag.backends.paged import PagedBackend
from gircse_rag.serving.service import Service
from gircse_rag.serving.settings import Settings
from tests.http_server import serve
from tests.unit.backends.test_engine_thread import wait_until

pytestmark = pytest.mark.slow

REQUESTS = int(os.environ.get("GIRCSE_SOAK_REQUESTS", "240"))
CLIENTS = 16
TEXTS = [f"text {number} of the way of the world" for number in range(40)]
STEPS = (1, 5, 9)
MALFORMED: list[tuple[bytes, set[int]]] = [
    (b"{", {400}),
    (b"[]", {400}),
    (json.dumps({"input": ["fine", "nul\x00"]}).encode(), {400}),
    (json.dumps({"input": [1, 2, 3]}).encode(), {400}),
    (json.dumps({"input": "a", "model": "other"}).encode(), {404}),
    (json.dumps({"input": "a", "stepz": 1}).encode(), {400}),
]
OVERSIZED: list[tuple[bytes, set[int]]] = [
    (b" " * 100_000, {413}),
    (json.dumps({"input": ["a"] * 3000}).encode(), {400}),
    (json.dumps({"input": "word " * 3000}).encode(), {400}),
    (json.dumps({"input": ["word " * 50] * 120}).encode(), {400}),
    (json.dumps({"input": "a", "steps": 10**9}).encode(), {400}),
    (json.dumps({"input": "a", "steps": 65}).encode(), {400}),
]


class Soak:
    """Sends random requests and checks every answer."""

    def __init__(self, url: str, vectors: dict[int, np.ndarray[Any, Any]]) -> None:
        self._url = url
        self._vectors = vectors
        self.counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def run(self, seed: int, number: int) -> None:
        choice = random.Random(seed)
        with httpx.Client(base_url=self._url, timeout=120, trust_env=False) as http:
            for _ in range(number):
                kind = choice.choice(["good", "good", "good", "malformed", "oversized", "hang up", "slow"])
                if kind == "good":
                    self._good(http, choice)
                elif kind == "hang up":
                    self._hang_up(choice)
                elif kind == "slow":
                    self._slow()
                else:
                    self._refused(http, *choice.choice(MALFORMED if kind == "malformed" else OVERSIZED))
                with self._lock:
                    self.counts[kind] += 1

    def _good(self, http: httpx.Client, choice: random.Random) -> None:
        rows, steps = choice.sample(range(len(TEXTS)), choice.randint(1, 12)), choice.choice(STEPS)
        answer = http.post("/v1/embeddings", json={"input": [TEXTS[row] for row in rows], "steps": steps})
        if answer.status_code == 429:
            assert int(answer.headers["Retry-After"]) >= 1
            return
        assert answer.status_code == 200, answer.text
        found = np.array([entry["embedding"] for entry in answer.json()["data"]], dtype=np.float32)
        assert np.abs(found - self._vectors[steps][rows]).max() < 5e-5

    def _refused(self, http: httpx.Client, body: bytes, statuses: set[int]) -> None:
        answer = http.post("/v1/embeddings", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code in statuses | {429}, answer.text  # texts are checked in the queue
        assert answer.json()["error"]["message"]

    def _hang_up(self, choice: random.Random) -> None:
        body = json.dumps({"input": choice.sample(TEXTS, 30), "steps": 64}).encode()
        with self._connect() as connection:
            connection.sendall(_head(len(body)) + body[: choice.choice([0, 10, len(body)])])
            if choice.random() < 0.5:
                connection.settimeout(choice.random() * 0.2)
                with contextlib.suppress(TimeoutError):
                    connection.recv(1)

    def _slow(self) -> None:
        with self._connect() as connection:
            connection.sendall(_head(100) + b"{")
            connection.settimeout(60)
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 408")

    def _connect(self) -> socket.socket:
        url = httpx.URL(self._url)
        return socket.create_connection((url.host, url.port), timeout=60)


def _head(length: int) -> bytes:
    fields = ["POST /v1/embeddings HTTP/1.1", "Host: a", "Content-Type: application/json", f"Content-Length: {length}"]
    return "\r\n".join([*fields, "", ""]).encode()


@pytest.mark.filterwarnings("ignore::gircse_rag.errors.GircseWarning")
def test_no_wrong_vector_no_leaked_block_no_unexpected_answer(tiny_folder: Path) -> None:
    with Embedder.from_pretrained(str(tiny_folder), device="cpu", dtype="float32") as embedder:
        vectors = {steps: embedder.embed(TEXTS, role="document", steps=steps).vectors for steps in STEPS}
        backend = embedder.backend
        assert isinstance(backend, PagedBackend)
        settings = Settings(
            model="tiny", max_body_bytes=50_000, max_tokens=10_000, body_timeout=0.3, max_concurrency=8, max_queue=4
        )
        service = Service(embedder, settings)
        with serve(service) as url:
            soak = Soak(url, vectors)
            warm, resident = REQUESTS // 5, [0, 0]
            for part, number in enumerate((warm, REQUESTS - warm)):
                with ThreadPoolExecutor(CLIENTS) as pool:
                    seeds = range(part * CLIENTS, (part + 1) * CLIENTS)
                    for done in [pool.submit(soak.run, seed, number // CLIENTS) for seed in seeds]:
                        done.result()
                resident[part] = psutil.Process().memory_info().rss
            wait_until(lambda: service.calls.pending == (0, 0))
            assert httpx.post(f"{url}/v1/embeddings", json={"input": "a"}, trust_env=False).status_code == 200
            failed = [line for line in service.metrics.render().decode().splitlines() if 'status="5' in line]
        assert not failed
        print(f"{soak.counts}, resident memory {resident[0] / 2**20:.0f} and {resident[1] / 2**20:.0f} MiB")
        assert soak.counts.total() >= REQUESTS - 2 * CLIENTS and len(soak.counts) == 5
        if REQUESTS >= 10_000:  # in the short form memory still warms up
            assert resident[1] <= 1.05 * resident[0], "memory grew by more than 5% after a fifth of the requests"
        assert backend.stats.running == backend.stats.waiting == backend.stats.used_blocks == 0
        backend._engine.scheduler.check_integrity()
