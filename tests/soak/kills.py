"""SIGKILL at random moments: the parts of the kill suite.

A collection holds version 1 of a corpus, or there is none yet. A process brings version 2 and is killed, again and
again, until one gets to its end. What is there then has to be what a run without kills leaves: ids, payloads, vectors.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qdrant_client import QdrantClient

from gircse_rag.documents.chunking import Chunker
from gircse_rag.embedder import Embedder, EmbeddingResult
from gircse_rag.qdrant import Document, ingest, open_client
from tests.unit.qdrant.standin import StandIn

BATCH = 8
PARAGRAPH = 20
"""Tokens of the real tokenizer in which one paragraph of the corpus fits, and two do not."""
State = dict[str, tuple[dict[str, Any], NDArray[np.float32]]]

# Forked from a server that has imported everything: a process is there in milliseconds, and still a process.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload([__name__])


class WritesDown:
    """Mixed into an embedder: what it embeds, a line a chunk, in a file that survives its process."""

    def __init__(self, log: Path | None = None, *args: Any) -> None:
        super().__init__(*args)
        self._log = None if log is None else os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def embed(self, texts: Any, *args: Any, **options: Any) -> EmbeddingResult:
        result: EmbeddingResult = super().embed(texts, *args, **options)  # type: ignore[misc]
        if self._log is not None:
            os.write(self._log, "".join(f"{hashlib.sha1(text.encode()).hexdigest()}\n" for text in texts).encode())
        return result


class Exact(WritesDown, StandIn):
    """Vectors whose length is exactly 1 in floating point, so that a store that normalises changes no bit."""

    def vector(self, text: str) -> NDArray[np.float32]:
        bits = np.unpackbits(np.frombuffer(hashlib.shake_256(text.encode()).digest(2), np.uint8))
        return (bits.astype(np.float32) - 0.5) / 2


class Real(WritesDown, Embedder):
    """The bundled model in float32."""

    def __init__(self, log: Path | None = None) -> None:
        loaded = Embedder.from_pretrained("smollm2-135m", dtype="float32", device="cpu")
        super().__init__(log, loaded.backend, loaded.tokenizer, loaded.spec)


def corpus(version: int, short: int = 10) -> Iterator[Document]:
    """Documents of which version 2 adds, changes, shifts, shortens, lengthens and drops some; `short` of each kind.

    Every paragraph is a chunk, and no two are alike, so a chunk that is embedded twice shows.
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


def bring(version: int, client: QdrantClient, embedder: Any, batch_size: int = BATCH) -> None:
    """Ingest a version; the real model, which is slow, gets less of it."""
    real = isinstance(embedder, Real)
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


def state(client: QdrantClient) -> State:
    """Everything that is in the collection."""
    points, _ = client.scroll("docs", limit=100_000, with_payload=True, with_vectors=True)
    return {
        str(point.id): (point.payload or {}, np.asarray(point.vector["gircse"], np.float32))  # type: ignore[index,call-overload]
        for point in points
    }


def work(path: str | None, url: str | None, log: str, real: bool) -> None:
    """What the process does that is killed."""
    if real:
        import torch

        torch.set_num_threads(1)
    embedder = (Real if real else Exact)(Path(log))
    Path(f"{log}.ready").touch()
    client = open_client(path) if url is None else QdrantClient(url=url, check_compatibility=False, timeout=30)
    bring(2, client, embedder)
    client.close()


@dataclass
class Figures:
    """What a kill suite found.

    Attributes:
        kills: processes killed before they were done.
        rounds: times that version 2 was brought, from version 1 to the end.
        chunks: that a round has to embed.
        lost: by kill, chunks whose vectors it cost: they were embedded again later.
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


def rounds(
    kills: int,
    folder: Path,
    seed: int,
    begin: Callable[[bool], tuple[str | None, str | None]],
    check: Callable[[], None],
    *,
    real: bool = False,
) -> Figures:
    """Kill that many times, and check every round that got to its end.

    Args:
        begin: makes the store anew, with version 1 if it is told so, else with nothing; its (path, url).
        check: compares what is there at the end of a round.
    """
    dice = random.Random(seed)
    log = folder / "embedded"
    figures = Figures()

    def start() -> Any:
        """A process that has its model: loading it is no moment at which something could be lost."""
        ready = Path(f"{log}.ready")
        ready.unlink(missing_ok=True)
        process = _PROCESSES.Process(target=work, args=(path, url, str(log), real))
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
        ends: list[int] = []  # of the log, at every kill
        while True:
            process = start()
            if figures.kills + len(ends) < kills:
                process.join(dice.uniform(0, duration if dice.random() < 0.5 else duration / 4))
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
    """By kill, the chunks whose latest embedding before it was not the last one."""
    lost = []
    for start, end in zip([0, *ends], ends, strict=False):
        run = log[start:end].split()
        later = set(log[end:].split())
        assert len(set(run)) == len(run), "a run embedded a chunk twice"
        lost.append(sum(chunk in later for chunk in run))
    return lost


def assert_same(found: State, expected: State, *, exact: bool = True) -> float:
    """The largest difference between two vectors' elements: 0 if `exact`, else at most 1e-5."""
    assert found.keys() == expected.keys()
    apart = 0.0
    for key, (payload, vector) in expected.items():
        assert found[key][0] == payload
        if exact:
            assert found[key][1].tobytes() == vector.tobytes()
        apart = max(apart, float(np.abs(found[key][1] - vector).max()))
    assert apart <= 1e-5
    return apart


class Folder:
    """An embedded store in a folder, which goes back to version 1 as often as it is asked."""

    def __init__(self, folder: Path, engine: Any, embedder: Any) -> None:
        self.apart = 0.0  # the largest difference that `check` has found
        self._engine = engine
        self._first, self._path = folder / "version 1", folder / "store"
        expected = folder / "expected"
        with_1 = open_client(self._first, engine=engine)
        bring(1, with_1, embedder)
        with_1.close()
        shutil.copytree(self._first, expected)
        client = open_client(expected)
        bring(2, client, embedder)
        self.expected = state(client)
        client.close()

    def begin(self, with_1: bool) -> tuple[str, None]:
        shutil.rmtree(self._path, ignore_errors=True)
        if with_1:
            shutil.copytree(self._first, self._path)
        else:
            open_client(self._path, engine=self._engine).close()
        return str(self._path), None

    def check(self, *, exact: bool = True) -> None:
        client = open_client(self._path)
        self.apart = max(self.apart, assert_same(state(client), self.expected, exact=exact))
        client.close()
