"""Faults around an embedded store: a full disk, a second process, a deleted collection."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from qdrant_client import QdrantClient, models

from gircse_rag.errors import StoreError
from gircse_rag.qdrant import Document, ingest, open_client
from tests.disk import SmallDisks
from tests.stand_in import StandIn


def _documents(count: int) -> Iterator[Document]:
    for number in range(count):
        yield Document(str(number), f"text {number}", {"filler": "x" * 8000})


def test_a_full_disk_is_reported_and_written_documents_are_kept(small_disks: SmallDisks) -> None:
    disk = small_disks.mount("3m")
    client, embedder = open_client(disk / "store"), StandIn()
    with pytest.raises(StoreError, match="disk is full"):
        ingest(_documents(400), collection="docs", embedder=embedder, client=client)
    client.close()
    small_disks.resize(disk, "60m")

    client = open_client(disk / "store")
    written = client.count("docs").count
    assert written > 30
    report = ingest(_documents(400), collection="docs", embedder=embedder, client=client)
    assert (report.unchanged, report.added, client.count("docs").count) == (written, 400 - written, 400)
    client.close()


@pytest.mark.slow
def test_an_edge_store_stops_before_its_disk_is_full(small_disks: SmallDisks) -> None:
    """On a full disk the engine's memory maps raise SIGBUS: without the check, this test would be killed."""
    pytest.importorskip("qdrant_edge", reason="the edge extra is not installed")
    disk = small_disks.mount("200m")
    client, embedder = open_client(disk / "store", engine="edge"), StandIn()
    with pytest.raises(StoreError, match=r"disk is full or nearly full: .* has 12\d MiB left"):
        ingest(_documents(9000), collection="docs", embedder=embedder, client=client)
    written = client.count("docs").count
    assert written > 500
    client.close()
    small_disks.resize(disk, "600m")

    client = open_client(disk / "store")
    report = ingest(_documents(written + 100), collection="docs", embedder=embedder, client=client)
    assert (report.unchanged, report.added, report.failed) == (written, 100, [])
    client.close()
    small_disks.resize(disk, "100m")
    client = open_client(disk / "store")
    with pytest.raises(StoreError, match="this operation needs 128"):
        client.create_collection("more", {"gircse": models.VectorParams(size=4, distance=models.Distance.COSINE)})
    assert not client.collection_exists("more")
    client.close()


@pytest.mark.slow
def test_a_second_process_cannot_open_a_store_in_use(tmp_path: Path) -> None:
    program = """
        import sys
        from gircse_rag.errors import StoreError
        from gircse_rag.qdrant import open_client
        try:
            open_client(sys.argv[1])
        except StoreError as error:
            sys.exit(str(error))
    """
    client = open_client(tmp_path / "store")
    opened, go_on = threading.Event(), threading.Event()

    def documents() -> Iterator[Document]:
        yield from _documents(70)
        opened.set()
        assert go_on.wait(60)
        yield Document("last", "text")

    reports = []
    thread = threading.Thread(
        target=lambda: reports.append(ingest(documents(), collection="docs", embedder=StandIn(), client=client))
    )
    thread.start()
    assert opened.wait(60)
    second = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), tmp_path / "store"],
        capture_output=True,
        text=True,
        check=False,
    )
    go_on.set()
    thread.join()
    assert second.returncode == 1 and "one client at a time" in second.stderr
    assert reports[0].added == 71
    client.close()


def test_a_collection_deleted_during_the_run_is_reported(embedder: StandIn) -> None:
    client = QdrantClient(":memory:")

    def documents() -> Iterator[Document]:
        yield from _documents(64)
        client.delete_collection("docs")
        yield from (Document(f"more {number}", "text") for number in range(64))

    with pytest.raises(StoreError, match="collection 'docs' is gone"):
        ingest(documents(), collection="docs", embedder=embedder, client=client)
