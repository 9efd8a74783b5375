"""SIGKILL at random moments: helpers of the kill suite.

A round starts with version 1 of a corpus in the collection, or with no collection. A process ingests version 2 and is
killed, repeatedly, until one finishes. The ids, payloads and vectors must then equal those of a run without kills.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qdrant_client import QdrantClient

from gircse_rag.backend import Backend, Refinement, Request
from gircse_rag.documents.chunking import Chunker
from gircse_rag.embedder import Embedder
from gircse_rag.errors import GircseError
from gircse_rag.qdrant import Document, ingest, open_client
from gircse_rag.qdrant.schema import RECORD
from tests.stand_in import StandIn, WordHashBackend, WrappedBackend

BATCH = 8
PARAGRAPH = 20
"""Tokens per chunk with the real tokenizer: one paragraph of the corpus fits, two do not."""
State = dict[str, tuple[dict[str, Any], NDArray[np.float32]]]

# The fork server has imported everything, so a real process starts within milliseconds.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload([__name__])


class LoggingBackend(WrappedBackend):
    """Appends a hash of each refined prompt, one per line, to a file that survives a killed process."""

    def __init__(self, inner: Backend, log: Path) -> None:
        super().__init__(inner)
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def refine(self, requests: Iterable[Request]) -> Iterator[tuple[int, Refinement | GircseError]]:
        requests = list(requests)
        yield from super().refine(requests)
        prompts = [np.asarray(request.token_ids).tobytes() for request in requests]
        os.write(self._log, "".join(f"{hashlib.sha1(prompt).hexdigest()}\n" for prompt in prompts).encode())


class ExactBackend(WordHashBackend):
    """Gives vectors whose length is exactly 1 in floating point, so that normalising in a store changes no bit."""

    def __init__(self) -> None:
        super().__init__(16)

    def vector(self, text: str) -> NDArray[np.float32]:
        bits = np.unpackbits(np.frombuffer(hashlib.shake_256(text.encode()).digest(2), np.uint8))
        return (bits.astype(np.float32) - np.float32(0.5)) / np.float32(2)


class ExactEmbedder(StandIn):
    """A StandIn over an ExactBackend; `log` is the file of a LoggingBackend."""

    def __init__(self, log: Path | None = None, *, words: ExactBackend | None = None) -> None:
        super().__init__(words=words or ExactBackend())
        if log is not None:
            self.backend = LoggingBackend(self.backend, log)


class RealEmbedder(Embedder):
    """The bundled model in float32; `log` is the file of a LoggingBackend."""

    def __init__(self, log: Path | None = None) -> None:
        loaded = Embedder.from_pretrained("smollm2-135m", dtype="float32", device="cpu")
        backend = loaded.backend if log is None else LoggingBackend(loaded.backend, log)
        super().__init__(backend, loaded.tokenizer, loaded.spec)


def corpus(version: int, short: int = 10) -> Iterator[Document]:
    """Yield a version of the corpus, with `short` documents per kind of change.

    Version 2 adds, changes, shifts, shortens, lengthens and drops documents. Every paragraph is one chunk, and no two
    are equal, so embedding a chunk twice is visible.
    """

    def text(name: str, *paragraphs: str) -> Document:
        return Document(name, "\n\n".join(f"{name}: paragraph {p} of a document of mine." for p in paragraphs))

    def numbers(start: int, end: int) -> list[str]:
        return [str(number) for number in range(start, end)]

    new = version == 2
    for n in range(short):
        yield text(f"same {n}", "1", "2")
        yield text(f"changed {n}", "1", "2b" if new else "2", "3")
        yield text(f"shifted {n}", *(["0"] if new else []), "1", "2", "3")
        yield text(f"shorter {n}", *numbers(0, 2 if new else 5))
        yield Document(f"tagged {n}", f"tagged {n} has other metadata.", {"year": 2020 + version})
        yield text(f"added {n}" if new else f"dropped {n}", *numbers(0, 1 + n % 3))
    if new:
        yield text("long, added", *numbers(0, 40))
    yield text("long, shifted", *(numbers(100, 110) if new else []), *numbers(0, 30))
    yield text("long, rewritten", *(numbers(200, 220) if new else numbers(0, 35)))
    yield text("long, reversed", *(reversed(numbers(0, 20)) if new else numbers(0, 20)))


def ingest_version(version: int, client: QdrantClient, embedder: Embedder, batch_size: int = BATCH) -> None:
    """Ingest a version of the corpus; the slow real model gets fewer documents."""
    real = isinstance(embedder, RealEmbedder)
    report = ingest(
        corpus(version, short=3) if real else corpus(version),
        collection="docs",
        embedder=embedder,
        client=client,
        chunker=Chunker(embedder.tokenizer, embedder.spec, max_tokens=PARAGRAPH) if real else None,
        batch_size=batch_size,
        source="corpus",
        sync=True,
    )
    assert report.failed == []


def read_state(client: QdrantClient) -> State:
    """Read the whole collection: (payload, vector) per point id."""
    points, _ = client.scroll("docs", limit=100_000, with_payload=True, with_vectors=True)
    return {
        str(point.id): (point.payload or {}, np.asarray(point.vector["gircse"], np.float32))  # type: ignore[index,call-overload]
        for point in points
    }


def run_child(path: str | None, url: str | None, log: str, real: bool) -> None:
    """Ingest version 2, in the process that is killed."""
    if real:
        import torch

        torch.set_num_threads(1)
    embedder = RealEmbedder(Path(log)) if real else ExactEmbedder(Path(log))
    Path(f"{log}.ready").touch()
    client = open_client(path) if url is None else QdrantClient(url=url, check_compatibility=False, timeout=30)
    ingest_version(2, client, embedder)
    client.close()


@dataclass
class Figures:
    """Results of a kill suite.

    Attributes:
        kills: processes killed before they finished.
        rounds: complete ingests of version 2, each with any number of kills.
        chunks: chunks that a round must embed.
        lost: per kill, chunks whose vectors were lost and embedded again.
    """

    kills: int = 0
    rounds: int = 0
    chunks: int = 0
    lost: list[int] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.kills} kills in {self.rounds} rounds of {self.chunks} chunks; chunks embedded again per kill: "
            f"mean {np.mean(self.lost):.2f}, most {max(self.lost)}, batches of {BATCH}"
        )


def run_rounds(
    kills: int,
    folder: Path,
    seed: int,
    begin: Callable[[bool], tuple[str | None, str | None]],
    check: Callable[[], None],
    *,
    real: bool = False,
) -> Figures:
    """Run rounds until `kills` processes were killed, and check the result of every round.

    Args:
        begin: recreates the store, with version 1 if its argument is true, else empty; returns (path, url).
        check: compares the store with the expected one at the end of a round.
    """
    rng = random.Random(seed)
    log = folder / "embedded"
    figures = Figures()

    def start() -> Any:
        """Start a process and wait until its model is loaded; earlier kills could lose nothing."""
        ready = Path(f"{log}.ready")
        ready.unlink(missing_ok=True)
        process = _PROCESSES.Process(target=run_child, args=(path, url, str(log), real))
        process.start()
        while process.is_alive() and not ready.exists():
            time.sleep(0.001)
        return process

    for _ in range(2):  # the first run starts the fork server
        log.unlink(missing_ok=True)
        path, url = begin(True)
        process = start()
        began = time.monotonic()
        process.join()
        duration = time.monotonic() - began
        assert process.exitcode == 0
        check()
    figures.chunks = len(log.read_text().split()) if log.exists() else 0
    while figures.kills < kills:
        path, url = begin(figures.rounds % 3 != 2)
        log.unlink(missing_ok=True)
        ends: list[int] = []  # size of the log at every kill
        while True:
            process = start()
            if figures.kills + len(ends) < kills:
                process.join(rng.uniform(0, duration if rng.random() < 0.5 else duration / 4))
                if process.is_alive():
                    process.kill()
                    process.join()
                    ends.append(log.stat().st_size if log.exists() else 0)
                    continue
            process.join()
            assert process.exitcode == 0
            break
        check()
        figures.kills += len(ends)
        figures.rounds += 1
        figures.lost += _lost(log.read_bytes(), ends)
    return figures


def _lost(log: bytes, ends: list[int]) -> list[int]:
    """Count, per kill, the chunks embedded by the killed process and again later."""
    lost = []
    for start, end in zip([0, *ends], ends, strict=False):
        run = log[start:end].split()
        later = set(log[end:].split())
        assert len(set(run)) == len(run), "a run embedded a chunk twice"
        lost.append(sum(chunk in later for chunk in run))
    return lost


def assert_same(actual: State, expected: State, *, exact: bool = True) -> float:
    """Assert equal ids and payloads, and vectors equal bit for bit if `exact`, else within 1e-5.

    Payloads include the checksums of the vectors, but not if vectors may differ.

    Returns the largest difference between two vector elements.
    """
    assert actual.keys() == expected.keys()
    max_difference = 0.0
    for key, (payload, vector) in expected.items():
        assert _comparable(actual[key][0], exact) == _comparable(payload, exact)
        if exact:
            assert actual[key][1].tobytes() == vector.tobytes()
        max_difference = max(max_difference, float(np.abs(actual[key][1] - vector).max()))
    assert max_difference <= 1e-5
    return max_difference


def _comparable(payload: dict[str, Any], exact: bool) -> dict[str, Any]:
    if exact:
        return payload
    record = {name: value for name, value in payload[RECORD].items() if name not in ("vector", "check")}
    return {**payload, RECORD: record}


class FolderStore:
    """An embedded store in a folder, which `begin` resets to version 1 or to an empty store."""

    def __init__(self, folder: Path, engine: Any, embedder: Embedder) -> None:
        self.max_difference = 0.0  # largest difference found by `check`
        self._engine = engine
        self._first, self._path = folder / "version 1", folder / "store"
        expected = folder / "expected"
        first_client = open_client(self._first, engine=engine)
        ingest_version(1, first_client, embedder)
        first_client.close()
        shutil.copytree(self._first, expected)
        client = open_client(expected)
        ingest_version(2, client, embedder)
        self.expected = read_state(client)
        client.close()

    def begin(self, with_version_1: bool) -> tuple[str, None]:
        shutil.rmtree(self._path, ignore_errors=True)
        if with_version_1:
            shutil.copytree(self._first, self._path)
        else:
            open_client(self._path, engine=self._engine).close()
        return str(self._path), None

    def check(self, *, exact: bool = True) -> None:
        client = open_client(self._path)
        self.max_difference = max(self.max_difference, assert_same(read_state(client), self.expected, exact=exact))
        client.close()
