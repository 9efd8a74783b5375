"""Reading, embedding and writing overlap: how far each may run ahead, and how errors end them."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qdrant_client import QdrantClient, models

from gircse_rag.errors import GircseError
from gircse_rag.qdrant import Document, ingest
from gircse_rag.qdrant.ingestion.prefetch import Prefetcher
from gircse_rag.qdrant.ingestion.seen import Seen
from gircse_rag.result import EmbeddingResult
from tests.processes import interruptible
from tests.stand_in import StandIn


@pytest.fixture
def client() -> QdrantClient:
    return QdrantClient(":memory:")


class _Events:
    """Log the calls of an embedder and a store in order."""

    def __init__(self, client: QdrantClient, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.embedded = self.written = self.most_unwritten = 0
        self.embedder = StandIn()
        plain, upsert = self.embedder.embed, client.upsert

        def embed(texts: Sequence[str], *args: Any, **options: Any) -> EmbeddingResult:
            self.log.append("embed")
            self.embedded += len(texts)
            self.most_unwritten = max(self.most_unwritten, self.embedded - self.written)
            return plain(texts, *args, **options)

        def write(collection: str, points: list[models.PointStruct], **options: Any) -> models.UpdateResult:
            time.sleep(0.02)
            result = upsert(collection, points, **options)
            self.written += len(points)
            self.log.append("written")
            return result

        monkeypatch.setattr(self.embedder, "embed", embed)
        monkeypatch.setattr(client, "upsert", write)


def _documents(count: int) -> Iterator[Document]:
    for number in range(count):
        yield Document(str(number), f"text {number}")


def test_one_batch_is_written_while_the_next_is_embedded(client: QdrantClient, monkeypatch: pytest.MonkeyPatch) -> None:
    events = _Events(client, monkeypatch)
    report = ingest(_documents(200), collection="docs", embedder=events.embedder, client=client, batch_size=10)
    assert report.added == events.written == 200
    assert events.log[:2] == ["embed", "embed"], "the second batch waited for a write"
    assert events.most_unwritten == 20, "the most unacknowledged points are not two batches"


def test_a_long_document_is_written_in_parts(client: QdrantClient, monkeypatch: pytest.MonkeyPatch) -> None:
    events = _Events(client, monkeypatch)
    text = "\n\n".join(f"Paragraph {number} of a text that is longer than many batches." for number in range(100))
    for version in (text, text.replace("longer", "shorter")):
        events.embedded = events.written = events.most_unwritten = 0
        ingest([Document("long", version)], collection="docs", embedder=events.embedder, client=client, batch_size=10)
        assert events.embedded == 100 and events.most_unwritten <= 20
        stored, _ = client.scroll("docs", limit=1000)
        assert len(stored) == 100 and {point.payload["gircse"]["chunks"] for point in stored if point.payload} == {100}


def test_reading_goes_on_while_a_batch_is_embedded(client: QdrantClient, monkeypatch: pytest.MonkeyPatch) -> None:
    read, embedding = threading.Event(), threading.Event()
    embedder = StandIn()
    plain = embedder.embed

    def embed(*args: Any, **options: Any) -> EmbeddingResult:
        embedding.set()
        assert read.wait(10), "reading stopped during embedding"
        return plain(*args, **options)

    def documents() -> Iterator[Document]:
        yield from _documents(64)
        assert embedding.wait(10), "embedding did not start"
        read.set()
        yield Document("last", "text")

    monkeypatch.setattr(embedder, "embed", embed)
    report = ingest(documents(), collection="docs", embedder=embedder, client=client, batch_size=64)
    assert report.added == 65


def test_an_error_while_reading_is_raised_and_leaves_no_thread(client: QdrantClient, embedder: StandIn) -> None:
    def documents() -> Iterator[Document]:
        yield from _documents(200)
        while not client.count("docs").count:  # until the first batch is written
            time.sleep(0.001)
        raise OSError("the network share is gone")

    with pytest.raises(OSError, match="network share"):
        ingest(documents(), collection="docs", embedder=embedder, client=client)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("gircse")]
    assert ingest(_documents(200), collection="docs", embedder=embedder, client=client).added < 200


@pytest.mark.parametrize("where", ["embed", "upsert"])
def test_an_error_while_embedding_or_writing_ends_reading(
    client: QdrantClient, embedder: StandIn, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    taken = []

    def endless() -> Iterator[Document]:
        for number in range(10**9):
            taken.append(number)
            yield Document(str(number), f"text {number}")

    def broken(*_: object, **__: object) -> None:
        raise GircseError("broken")

    monkeypatch.setattr(embedder if where == "embed" else client, where, broken)
    with pytest.raises(GircseError, match="broken"):
        ingest(endless(), collection="docs", embedder=embedder, client=client)
    time.sleep(0.1)
    count = len(taken)
    time.sleep(0.2)
    assert len(taken) == count < 1000
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("gircse")]


@pytest.mark.slow
def test_nothing_touches_the_store_once_an_ingest_has_failed(
    embedder: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = QdrantClient(":memory:")

    def stuck() -> Iterator[Document]:
        yield from _documents(64)
        time.sleep(4)  # longer than `ingest` waits for its reader
        yield from _documents(200)

    def broken(*_: object, **__: object) -> None:
        raise GircseError("broken")

    monkeypatch.setattr(embedder, "embed", broken)
    with pytest.raises(GircseError, match="broken"):
        ingest(stuck(), collection="docs", embedder=embedder, client=client)
    calls: list[str] = []
    for name in ("retrieve", "upsert"):
        monkeypatch.setattr(client, name, lambda *_, name=name, **__: calls.append(name))
    for thread in threading.enumerate():
        if thread.name.startswith("gircse"):
            thread.join(10)
    assert calls == []


INTERRUPTED = """
    import sys
    import time
    from qdrant_client import QdrantClient
    from gircse_rag.qdrant import Document, ingest
    from tests.stand_in import StandIn

    def documents():
        for number in range(10**9):
            if number == 300:
                print("ready", flush=True)
                {stuck}
            yield Document(str(number), f"text {{number}}")

    try:
        ingest(documents(), collection="docs", embedder=StandIn(), client=QdrantClient(":memory:"))
    except KeyboardInterrupt:
        sys.exit(99)
"""


@pytest.mark.slow
@pytest.mark.parametrize("stuck", ["pass", "time.sleep(3600)"])
def test_an_interrupt_ends_an_ingest_even_if_its_iterator_is_stuck(stuck: str) -> None:
    program = textwrap.dedent(INTERRUPTED).format(stuck=stuck)
    process = interruptible([sys.executable, "-c", program], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 99
    finally:
        process.kill()  # it never ends by itself


def test_the_prefetcher_gives_the_items_in_order_and_then_the_error() -> None:
    def items() -> Iterator[int]:
        yield from range(100)
        raise ValueError("after the last")

    items_read = []
    with pytest.raises(ValueError, match="after the last"):
        for item in Prefetcher(items()):
            items_read.append(item)
    assert items_read == list(range(100))


def test_seen_distinguishes_ids_and_contents() -> None:
    seen = Seen()
    assert seen.compare_versions([("a", "1"), ("a", "1"), ("a", "2")]) == ["new", "same", "different"]
    assert seen.compare_versions([("a", "2"), ("b", "1"), ("a", "1")]) == ["different", "new", "same"]
    assert seen.find_duplicates([("a", "text"), ("b", "other"), ("c", "text")]) == [None, None, "a"]
    assert seen.find_duplicates([("d", "new"), ("e", "other"), ("f", "new")]) == [None, "b", "d"]
    assert seen.compare_versions([]) == seen.find_duplicates([]) == []
    seen.add_failed("broken")
    assert "a" in seen and "broken" in seen and "c" not in seen
    assert seen.compare_versions([("broken", "1")]) == ["new"], "a failed document blocked a later one with its id"


def test_a_document_written_in_parts_gets_its_own_vectors(tmp_path: Path, client: QdrantClient) -> None:
    embedder = StandIn()
    text = "\n\n".join(f"Paragraph {number} stands in a text of several batches." for number in range(40))
    ingest(
        [Document("a", text), Document("b", "short")], collection="docs", embedder=embedder, client=client, batch_size=7
    )
    points, _ = client.scroll("docs", limit=100, with_vectors=True)
    assert len(points) == 41
    for point in points:
        assert point.payload is not None and isinstance(point.vector, dict)
        np.testing.assert_allclose(
            np.asarray(point.vector["gircse"]), embedder.vector(point.payload["page_content"]), atol=1e-6
        )
