"""What goes wrong around an embedded store: a full disk, another process."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from qdrant_client import QdrantClient

from gircse_rag.errors import StoreError
from gircse_rag.qdrant import Document, ingest, open_client
from tests.unit.qdrant.standin import StandIn


def _documents(count: int) -> Iterator[Document]:
    for number in range(count):
        yield Document(str(number), f"text {number}", {"filler": "x" * 8000})


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if (
        sys.platform != "linux"
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("only root on Linux may mount a small file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk_is_named_and_what_was_written_is_kept(small_disk: Path) -> None:
    client, embedder = open_client(small_disk / "store"), StandIn()
    with pytest.raises(StoreError, match="disk is full"):
        ingest(_documents(400), collection="docs", embedder=embedder, client=client)  # type: ignore[arg-type]
    client.close()
    subprocess.run(["mount", "-o", "remount,size=60m", small_disk], check=True)

    client = open_client(small_disk / "store")
    written = client.count("docs").count
    assert written > 30
    report = ingest(_documents(400), collection="docs", embedder=embedder, client=client)  # type: ignore[arg-type]
    assert (report.unchanged, report.added, client.count("docs").count) == (written, 400 - written, 400)
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
