"""What goes wrong around an embedded store: a full disk, another process."""

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
from tests.unit.qdrant.standin import StandIn


def _documents(count: int) -> Iterator[Document]:
    for number in range(count):
        yield Document(str(number), f"text {number}", {"filler": "x" * 8000})


def test_a_full_disk_is_named_and_what_was_written_is_kept(small_disks: SmallDisks) -> None:
    disk = small_disks.mount("3m")
    client, embedder = open_client(disk / "store"), StandIn()
    with pytest.raises(StoreError, match="disk is full"):
        ingest(_documents(400), collection="docs", embedder=embedder, client=client)  # type: ignore[arg-type]
    client.close()
    small_disks.resize(disk, "60m")

    client = open_client(disk / "store")
    written = client.count("docs").count
    assert written > 30
    report = ingest(_documents(400), collection="docs", embedder=embedder, client=client)  # type: ignore[arg-type]
    assert (report.unchanged, report.added, client.count("docs").count) == (written, 400 - written, 400)
    client.close()


def test_an_edge_store_stops_before_its_disk_is_full(small_disks: SmallDisks) -> None:
    """Past that the engine's memory maps would kill the process: without the check this test dies of SIGBUS."""
    pytest.importorskip("qdrant_edge", reason="the edge extra is not installed")
    disk = small_disks.mount("200m")
    client, embedder = open_client(disk / "store", engine="edge"), StandIn()
    with pytest.raises(StoreError, match=r"disk is full, or nearly: .* has 12\d MiB left"):
        ingest(_documents(9000), collection="docs", embedder=embedder, client=client)  # type: ignore[arg-type]
    written = client.count("docs").count
    assert written > 500
    client.close()
    small_disks.resize(disk, "600m")

    client = open_client(disk / "store")
    report = ingest(_documents(written + 100), collection="docs", embedder=embedder, client=client)  # type: ignore[arg-type]
    assert (report.unchanged, report.added, report.failed) == (written, 100, [])
    client.close()
    small_disks.resize(disk, "100m")
    client = open_client(disk / "store")
    with pytest.raises(StoreError, match="an edge store needs 128 for this"):
        client.create_collection("more", {"gircse": models.VectorParams(size=4, distance=models.Distance.COSINE)})
    assert not client.collection_exists("more")
    client.close()


def test_two_processes_cannot_write_into_one_folder_and_the_second_is_told(tmp_path: Path) -> None:
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
    running = threading.Thread(
        target=lambda: reports.append(
            ingest(documents(), collection="docs", embedder=StandIn(), client=client)  # type: ignore[arg-type]
        )
    )
    running.start()
    assert opened.wait(60)
    second = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), tmp_path / "store"],
        capture_output=True,
        text=True,
        check=False,
    )
    go_on.set()
    running.join()
    assert second.returncode == 1 and "one client at a time" in second.stderr
    assert reports[0].added == 71
    client.close()


def test_a_collection_deleted_under_the_run_is_named(embedder: StandIn) -> None:
    client = QdrantClient(":memory:")

    def documents() -> Iterator[Document]:
        yield from _documents(64)
        client.delete_collection("docs")
        yield from (Document(f"more {number}", "text") for number in range(64))

    with pytest.raises(StoreError, match="collection 'docs' is gone"):
        ingest(documents(), collection="docs", embedder=embedder, client=client)  # type: ignore[arg-type]
