"""`ingest_on_ray` on a Ray of this machine, with a server over HTTP and real kills."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from qdrant_client import QdrantClient

from gircse_rag.embedder import EmbeddingResult
from gircse_rag.errors import GircseError, InputError, SpecMismatchError, StoreError
from gircse_rag.qdrant import Document, IngestReport, SkippedFile, ingest, open_client
from gircse_rag.qdrant.ingestion import ray_runner
from gircse_rag.qdrant.ingestion.ray_runner import ingest_on_ray
from tests.qdrant_shim import Shim
from tests.soak.kills import BATCH, Exact, assert_same, state
from tests.unit.qdrant.standin import POISON, StandIn

ray = pytest.importorskip("ray", reason="needs gircse-rag[ray]")
pytest.importorskip("ray.data", reason="needs gircse-rag[ray]")

COUNT = 400


def corpus(version: int, skip: int = 0) -> Iterator[Document | SkippedFile]:
    for number in range(skip, COUNT):
        tail = f"version {version}" if number % 3 == 0 else "as ever"
        paragraphs = [f"{number}: paragraph {part} of a document." for part in range(number % 5)]
        yield Document(f"{number}", "\n\n".join([*paragraphs, f"{number}: {tail}"]), {"number": number})


def flawed(picture: Path) -> Iterator[Document | SkippedFile]:
    yield from corpus(2)
    yield Document("7", "another text under an id that was used long before")
    yield Document("copy", "1: paragraph 0 of a document.\n\n1: as ever")
    yield Document("poisoned", f"some {POISON}")
    yield Document("no JSON", "text", {"bytes": b"x"})
    yield SkippedFile(str(picture), "no reader for .png")
    yield from list(corpus(2))[:1]


class Dying(Exact):
    """Kills its process once, with SIGKILL, at a text that holds `word`."""

    def __init__(self, log: Path, mark: Path, word: str) -> None:
        super().__init__(log)
        self._mark, self._word = mark, word

    def embed(self, texts: Any, *args: Any, **options: Any) -> EmbeddingResult:
        if any(self._word in text for text in texts):
            die_once(self._mark)
        return super().embed(texts, *args, **options)


class Slow(Exact):
    def embed(self, *args: Any, **options: Any) -> EmbeddingResult:
        time.sleep(0.05)
        return super().embed(*args, **options)


def die_once(mark: Path) -> None:
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def dying_corpus(mark: Path) -> Iterator[Document | SkippedFile]:
    for number, document in enumerate(corpus(2)):
        if number == 300:
            die_once(mark)
        yield document


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=4, include_dashboard=False, logging_level="error", object_store_memory=200_000_000)
    yield
    ray.shutdown()


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_runner, "_PART_DOCUMENTS", 64)


@pytest.fixture
def shim() -> Iterator[Shim]:
    with Shim() as made:
        yield made


def on_ray(shim: Shim, documents: Any, **options: Any) -> IngestReport:
    options = {"embedder": Exact, "batch_size": BATCH, "source": "here", **options}
    return ingest_on_ray(documents, collection="docs", client=partial(open_client, url=shim.url), **options)


def alone(client: QdrantClient, documents: Any, **options: Any) -> IngestReport:
    options = {"batch_size": BATCH, "source": "here", **options}
    return ingest(documents, collection="docs", embedder=Exact(), client=client, **options)  # type: ignore[arg-type]


def test_it_is_the_ingest_of_one_process_point_by_point_and_line_by_line(shim: Shim, tmp_path: Path) -> None:
    """Documents that are new, changed, the same, gone, used twice, alike, poisoned and no JSON."""
    picture = tmp_path / "picture.png"
    picture.touch()
    expected = QdrantClient(":memory:")
    with shim.quiet():
        for client in (expected, shim.store):
            alone(client, corpus(1, skip=20), sync=True)
            alone(client, [Document("gone", "1\n\n2"), Document("elsewhere", "1")])
            alone(client, [Document("elsewhere", "1")], source="there")
    shim.fail_often(0.1, seed=1)
    wanted = alone(expected, flawed(picture), sync=True)
    report = on_ray(shim, partial(flawed, picture), sync=True)
    assert report.retries > 0 and report.removed == 1 and len(report.failed) == 3
    assert sorted(map(str, report.failed)) == sorted(map(str, wanted.failed))
    assert vars(report) | {"failed": [], "retries": 0} == vars(wanted) | {"failed": [], "retries": 0}
    with shim.quiet():
        assert_same(state(shim.store), state(expected))


def test_killed_workers_and_a_killed_reader_leave_what_a_run_without_kills_leaves(shim: Shim, tmp_path: Path) -> None:
    """And what is embedded twice is, for each kill, two batches at most."""
    log, expected = tmp_path / "embedded", QdrantClient(":memory:")
    for version in (1, 2):
        alone(expected, corpus(version))
    with shim.quiet():
        alone(shim.store, corpus(1))
    report = on_ray(
        shim,
        partial(dying_corpus, tmp_path / "reader"),
        embedder=partial(Dying, log, tmp_path / "worker", "150: version 2"),
    )
    assert (tmp_path / "reader").exists() and (tmp_path / "worker").exists()
    assert report.failed == [] and report.updated + report.unchanged == COUNT
    with shim.quiet():
        assert_same(state(shim.store), state(expected))
    embedded = log.read_text().split()
    assert len(set(embedded)) == (COUNT + 2) // 3 <= len(embedded) <= (COUNT + 2) // 3 + 2 * BATCH


def test_after_the_caller_was_killed_the_same_call_goes_on(shim: Shim, tmp_path: Path) -> None:
    log = tmp_path / "embedded"
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    caller = subprocess.Popen(
        [sys.executable, "-c", f"from {__name__} import *; bring({shim.url!r}, {str(log)!r})"],
        env=environment,
        cwd=Path(__file__).parents[3],
    )
    while shim.requests.count(("PUT", "/collections/docs/points")) < 20:
        assert caller.poll() is None
        time.sleep(0.05)
    caller.kill()
    caller.wait()
    while time.monotonic() - shim.asked[-1] < 2:  # Ray ends what the dead caller had begun
        time.sleep(0.1)
    with shim.quiet():
        written = shim.store.count("docs").count
    first = set(log.read_text().split())
    expected = QdrantClient(":memory:")
    wanted = alone(expected, corpus(1))
    assert 0 < written < wanted.embedded
    report = on_ray(shim, partial(corpus, 1), embedder=partial(Slow, log))
    assert report.embedded <= wanted.embedded - len(first) + 2 * 2 * BATCH
    with shim.quiet():
        assert_same(state(shim.store), state(expected))


def bring(url: str, log: str) -> None:
    """What the caller does that is killed."""
    ray_runner._PART_DOCUMENTS = 64
    ingest_on_ray(
        partial(corpus, 1),
        collection="docs",
        embedder=partial(Slow, Path(log)),
        client=partial(open_client, url=url),
        batch_size=BATCH,
        source="here",
    )


def test_what_ends_an_ingest_ends_this_one(shim: Shim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match="collection 'docs' is gone"):
        on_ray(shim, partial(vanishing, shim.url))
    with shim.quiet():
        assert not shim.store.collection_exists("docs"), "a worker made it anew"
    monkeypatch.setattr(ray_runner, "_TRIES_OF_A_PART", 1)
    with pytest.raises(GircseError, match="Ray gave up on some documents"):
        on_ray(shim, partial(corpus, 1), embedder=partial(Dying, tmp_path / "log", tmp_path / "worker", "150: version"))


def vanishing(url: str) -> Iterator[Document | SkippedFile]:
    for number, document in enumerate(corpus(1)):
        if number == 300:
            QdrantClient(url=url, check_compatibility=False).delete_collection("docs")
        yield document


def test_what_cannot_work_is_refused_before_a_worker_starts(shim: Shim, tmp_path: Path) -> None:
    documents = partial(corpus, 1)
    with pytest.raises(InputError, match="run a Qdrant server"):
        ingest_on_ray(documents, collection="docs", embedder=Exact, client=partial(open_client, tmp_path / "store"))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="5 workers take 5 CPUs, and Ray has 4"):
        on_ray(shim, documents, workers=5)
    with pytest.raises(InputError, match="2 workers take 1 GPUs, and Ray has 0"):
        on_ray(shim, documents, gpus=0.5)
    with pytest.raises(InputError, match="workers must be at least 1"):
        on_ray(shim, documents, workers=0)
    with pytest.raises(InputError, match="give the source a name"):
        on_ray(shim, documents, sync=True, source=None)
    with pytest.raises(SpecMismatchError):
        on_ray(shim, documents, embedder=partial(StandIn, max_length=32))
