"""`ingest_on_ray` on a local Ray, with a server over HTTP and real kills."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from qdrant_client import QdrantClient

from gircse_rag import Embedder
from gircse_rag.backend import Refinement, Request
from gircse_rag.errors import GircseError, InputError, SpecMismatchError, StoreError
from gircse_rag.qdrant import Document, IngestReport, SkippedFile, ingest, open_client
from gircse_rag.qdrant.ingestion import ray_runner
from gircse_rag.qdrant.ingestion.ray_runner import ingest_on_ray
from tests.qdrant_shim import Shim
from tests.soak.kills import BATCH, ExactBackend, ExactEmbedder, assert_same, read_state
from tests.stand_in import POISON, StandIn

ray = pytest.importorskip("ray", reason="needs gircse-rag[ray]")
pytest.importorskip("ray.data", reason="needs gircse-rag[ray]")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]  # several Rays at once starve each other

COUNT = 400


def corpus(version: int, skip: int = 0) -> Iterator[Document | SkippedFile]:
    for number in range(skip, COUNT):
        tail = f"version {version}" if number % 3 == 0 else "as ever"
        paragraphs = [f"{number}: paragraph {part} of a document." for part in range(number % 5)]
        yield Document(f"{number}", "\n\n".join([*paragraphs, f"{number}: {tail}"]), {"number": number})


def flawed_corpus(picture: Path) -> Iterator[Document | SkippedFile]:
    yield from corpus(2)
    yield Document("7", "another text under an id that was used long before")
    yield Document("copy", "1: paragraph 0 of a document.\n\n1: as ever")
    yield Document("poisoned", f"some {POISON}")
    yield Document("no JSON", "text", {"bytes": b"x"})
    yield SkippedFile(str(picture), "no reader for .png")
    yield from list(corpus(2))[:1]


class DyingBackend(ExactBackend):
    """Kills its process once, with SIGKILL, at a text that contains `word`."""

    def __init__(self, marker: Path, word: str) -> None:
        super().__init__()
        self._marker, self._word = marker, word

    def vector(self, text: str) -> NDArray[np.float32]:
        if self._word in text:
            die_once(self._marker)
        return super().vector(text)


def dying_embedder(log: Path, marker: Path, word: str) -> Embedder:
    return ExactEmbedder(log, words=DyingBackend(marker, word))


class SlowBackend(ExactBackend):
    def refine(self, requests: Iterable[Request]) -> Iterator[tuple[int, Refinement | GircseError]]:
        time.sleep(0.05)
        return super().refine(requests)


def slow_embedder(log: Path) -> Embedder:
    return ExactEmbedder(log, words=SlowBackend())


def die_once(marker: Path) -> None:
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def dying_corpus(marker: Path) -> Iterator[Document | SkippedFile]:
    for number, document in enumerate(corpus(2)):
        if number == 300:
            die_once(marker)
        yield document


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init("local", num_cpus=4, include_dashboard=False, logging_level="error", object_store_memory=200_000_000)
    yield
    ray.shutdown()


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_runner, "_DOCUMENTS_PER_PART", 64)


@pytest.fixture
def shim() -> Iterator[Shim]:
    with Shim() as server:
        yield server


def ingest_with_ray(shim: Shim, documents: Any, **options: Any) -> IngestReport:
    options = {"embedder": ExactEmbedder, "batch_size": BATCH, "source": "here", **options}
    return ingest_on_ray(documents, collection="docs", client=partial(open_client, url=shim.url), **options)


def ingest_in_process(client: QdrantClient, documents: Any, **options: Any) -> IngestReport:
    options = {"batch_size": BATCH, "source": "here", **options}
    return ingest(documents, collection="docs", embedder=ExactEmbedder(), client=client, **options)


def _reasons(report: IngestReport) -> list[str]:
    """Failure messages without a text's position in its batch, which depends on how Ray distributes the work."""
    return sorted(re.sub(r"text \d+: ", "", str(failure)) for failure in report.failed)


def test_points_and_report_equal_those_of_one_process(shim: Shim, tmp_path: Path) -> None:
    """Documents that are new, changed, unchanged, gone, duplicated, poisoned, not JSON, or reuse an id."""
    picture = tmp_path / "picture.png"
    picture.touch()
    expected = QdrantClient(":memory:")
    with shim.paused():
        for client in (expected, shim.store):
            ingest_in_process(client, corpus(1, skip=20), sync=True)
            ingest_in_process(client, [Document("gone", "1\n\n2"), Document("elsewhere", "1")])
            ingest_in_process(client, [Document("elsewhere", "1")], source="there")
    shim.fail_randomly(0.1, seed=1)
    expected_report = ingest_in_process(expected, flawed_corpus(picture), sync=True)
    report = ingest_with_ray(shim, partial(flawed_corpus, picture), sync=True)
    assert report.retries > 0 and report.removed == 1 and len(report.failed) == 3
    assert _reasons(report) == _reasons(expected_report)
    assert vars(report) | {"failed": [], "retries": 0} == vars(expected_report) | {"failed": [], "retries": 0}
    with shim.paused():
        assert_same(read_state(shim.store), read_state(expected))


def test_killed_workers_and_a_killed_reader_do_not_change_the_result(shim: Shim, tmp_path: Path) -> None:
    """Each kill costs at most two batches that are embedded again."""
    log, expected = tmp_path / "embedded", QdrantClient(":memory:")
    for version in (1, 2):
        ingest_in_process(expected, corpus(version))
    with shim.paused():
        ingest_in_process(shim.store, corpus(1))
    report = ingest_with_ray(
        shim,
        partial(dying_corpus, tmp_path / "reader"),
        embedder=partial(dying_embedder, log, tmp_path / "worker", "150: version 2"),
    )
    assert (tmp_path / "reader").exists() and (tmp_path / "worker").exists()
    assert report.failed == [] and report.updated + report.unchanged == COUNT
    with shim.paused():
        assert_same(read_state(shim.store), read_state(expected))
    embedded = log.read_text().split()
    assert len(set(embedded)) == (COUNT + 2) // 3 <= len(embedded) <= (COUNT + 2) // 3 + 2 * BATCH


def test_after_the_caller_was_killed_the_same_call_resumes(shim: Shim, tmp_path: Path) -> None:
    log = tmp_path / "embedded"
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    caller = subprocess.Popen(
        [sys.executable, "-c", f"from {__name__} import *; ingest_slowly({shim.url!r}, {str(log)!r})"],
        env=environment,
        cwd=Path(__file__).parents[4],
    )
    while shim.requests.count(("PUT", "/collections/docs/points")) < 20:
        assert caller.poll() is None
        time.sleep(0.05)
    caller.kill()
    caller.wait()
    while time.monotonic() - shim.request_times[-1] < 2:  # Ray is still ending the dead caller's tasks
        time.sleep(0.1)
    with shim.paused():
        written = shim.store.count("docs").count
    first = set(log.read_text().split())
    expected = QdrantClient(":memory:")
    expected_report = ingest_in_process(expected, corpus(1))
    assert 0 < written < expected_report.embedded
    report = ingest_with_ray(shim, partial(corpus, 1), embedder=partial(slow_embedder, log))
    assert report.embedded <= expected_report.embedded - len(first) + 2 * 2 * BATCH
    with shim.paused():
        assert_same(read_state(shim.store), read_state(expected))


def ingest_slowly(url: str, log: str) -> None:
    """Ingest version 1: the work of the caller that is killed."""
    ray_runner._DOCUMENTS_PER_PART = 64
    ingest_on_ray(
        partial(corpus, 1),
        collection="docs",
        embedder=partial(slow_embedder, Path(log)),
        client=partial(open_client, url=url),
        batch_size=BATCH,
        source="here",
    )


def test_fatal_errors_end_the_ingest(shim: Shim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match="collection 'docs' is gone"):
        ingest_with_ray(shim, partial(collection_deleting_corpus, shim.url))
    with shim.paused():
        assert not shim.store.collection_exists("docs"), "a worker created it again"
    monkeypatch.setattr(ray_runner, "_MAX_TRIES_PER_PART", 1)
    with pytest.raises(GircseError, match="Ray gave up on some documents"):
        ingest_with_ray(
            shim,
            partial(corpus, 1),
            embedder=partial(dying_embedder, tmp_path / "log", tmp_path / "worker", "150: version"),
        )


def collection_deleting_corpus(url: str) -> Iterator[Document | SkippedFile]:
    for number, document in enumerate(corpus(1)):
        if number == 300:
            QdrantClient(url=url, check_compatibility=False).delete_collection("docs")
        yield document


def test_invalid_settings_are_refused_before_a_worker_starts(shim: Shim, tmp_path: Path) -> None:
    documents = partial(corpus, 1)
    with pytest.raises(InputError, match="run a Qdrant server"):
        ingest_on_ray(
            documents, collection="docs", embedder=ExactEmbedder, client=partial(open_client, tmp_path / "store")
        )
    with pytest.raises(InputError, match="5 workers need 5 CPUs, but Ray has 4"):
        ingest_with_ray(shim, documents, workers=5)
    with pytest.raises(InputError, match="2 workers need 1 GPU, but Ray has 0"):
        ingest_with_ray(shim, documents, gpus=0.5)
    with pytest.raises(InputError, match="workers must be at least 1"):
        ingest_with_ray(shim, documents, workers=0)
    with pytest.raises(InputError, match="sync needs a `source` name"):
        ingest_with_ray(shim, documents, sync=True, source=None)
    with pytest.raises(SpecMismatchError):
        ingest_with_ray(shim, documents, embedder=partial(StandIn, max_length=32))
