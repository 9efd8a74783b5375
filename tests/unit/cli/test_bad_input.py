"""Faults during `gircse ingest`: one clear line per fault, the rest is ingested, and the exit code reports it."""

from __future__ import annotations

import itertools
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from gircse_rag.qdrant import open_client
from tests.disk import SmallDisks
from tests.pdfs import encrypt, make_pdf, with_contents
from tests.qdrant_shim import Shim
from tests.unit.cli.conftest import Gircse

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

STORE = ["--collection", "docs", "--path", "store"]


@contextmanager
def _keep_touching(path: Path) -> Iterator[None]:
    """Keep changing the file's modification time while the block runs."""
    done = threading.Event()

    def write() -> None:
        for nanoseconds in itertools.count(1):
            if done.wait(0.001):
                return
            os.utime(path, ns=(nanoseconds, nanoseconds))

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _write_lines(path: Path, count: int, start: int = 0) -> None:
    rows = ({"id": n, "text": f"{path.stem} number {n}"} for n in range(start, start + count))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.slow
def test_every_bad_file_is_reported_and_the_rest_is_ingested(
    gircse: Gircse, tiny_model: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "good.txt").write_text("one good text")
    (folder / "zz last.md").write_text("# Another\n\ngood text")
    (folder / "twice.jsonl").write_text('{"id": 1, "text": "one"}\n{"id": 1, "text": "another"}\n')
    pq.write_table(pa.table({"text": ["fine", "bytes"], "raw": [None, b"x"]}), folder / "raw.parquet")
    with (folder / "large.txt").open("wb") as file:
        file.truncate(500_000_000)
    encrypt(make_pdf(folder / "closed.pdf", "Words."), "secret", "owner", "AES-256")
    make_pdf(folder / "pictures.pdf", "", "")
    with_contents(folder / "bomb.pdf", 80_000_000)
    pq.write_table(pa.table({"text": ["a" * 30_000_000, "b"]}), folder / "bomb.parquet", compression="zstd")
    (folder / "loop").symlink_to(folder)
    (folder / "ring.txt").symlink_to(folder / "ring.txt")
    _write_lines(folder / "changing.jsonl", 600)
    with _keep_touching(folder / "changing.jsonl"):
        result = gircse("ingest", folder, *STORE, "--json", *tiny_model)
    assert result.code == 1
    reasons = {
        "bomb.parquet": "30,0",
        "bomb.pdf": "unpacks to more than the limit",
        "changing.jsonl": "the file changed while it was read; run again",
        "closed.pdf": "the file has a password; save it without one",
        "large.txt": "too large (500,000,000 bytes)",
        "pictures.pdf": "no text: the pages are empty or scanned",
        "raw.parquet": "row 2: the field 'raw' cannot be metadata",
        "ring.txt": "cannot be read",
    }
    assert {Path(skip["path"]).name for skip in result.json["skipped"]} == set(reasons)
    lines = result.err.splitlines()
    for name, reason in reasons.items():
        (line,) = [line for line in lines if f"{folder / name}:" in line or f"{folder / name}, " in line]
        assert line.startswith("skipped: ") and reason in line
    assert [failed["id"] for failed in result.json["failed"]] == ["twice.jsonl#1"]
    (line,) = [line for line in lines if line.startswith("failed: ")]
    assert "its id was used before in this run" in line
    assert len(lines) == len(reasons) + 1
    assert result.json["added"] >= 4
    with closing(open_client(tmp_path / "store")) as client:
        points, _ = client.scroll("docs", limit=1000)
    stored = {(point.payload or {})["doc_id"] for point in points}
    assert {"good.txt", "zz last.md", "twice.jsonl#1", "raw.parquet:1"} <= stored
    assert stored - {"good.txt", "zz last.md", "twice.jsonl#1", "raw.parquet:1"} <= {
        f"changing.jsonl#{n}" for n in range(600)
    }

    again = gircse("ingest", folder, *STORE, "--json", *tiny_model)
    assert again.code == 1 and again.json["unchanged"] == result.json["added"], "stored documents were changed"
    assert again.json["added"] == 604 - result.json["added"]


def test_a_wrong_api_key_is_reported_and_not_retried(
    gircse: Gircse, tiny_model: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("one")
    monkeypatch.setenv("QDRANT_API_KEY", "wrong")
    with Shim(api_key="right") as shim:
        result = gircse("ingest", "a.txt", "--collection", "docs", "--url", shim.url, *tiny_model)
        assert (result.code, result.out, len(shim.requests)) == (4, "", 1)
    assert result.err.startswith("error: ") and result.err.count("\n") == 1
    assert "HTTP 401" in result.err and "QDRANT_API_KEY" in result.err and "wrong" not in result.err


@pytest.mark.slow
def test_a_collection_deleted_during_the_run_is_reported_and_rebuilt_by_the_next(
    gircse: Gircse, tiny_model: list[str], tmp_path: Path
) -> None:
    _write_lines(tmp_path / "many.jsonl", 600)
    with Shim() as shim:
        command = ["ingest", "many.jsonl", "--collection", "docs", "--url", shim.url, "--json", *tiny_model]

        def delete() -> None:
            while shim.requests.count(("PUT", "/collections/docs/points")) < 3:
                time.sleep(0.005)
            with shim.paused():
                shim.store.delete_collection("docs")

        thread = threading.Thread(target=delete)
        thread.start()
        result = gircse(*command)
        thread.join()
        assert (result.code, result.out) == (4, "")
        assert result.err == (
            "error: collection 'docs' is gone: another client deleted it during this run; run again to rebuild it\n"
        )
        again = gircse(*command)
        assert (again.code, again.json["added"]) == (0, 600)


@pytest.mark.parametrize(
    ("engine", "size", "larger"), [("local", "2m", "60m"), pytest.param("edge", "180m", "600m", marks=pytest.mark.slow)]
)
def test_a_full_disk_is_reported_and_the_same_command_resumes(
    gircse: Gircse, tiny_model: list[str], tmp_path: Path, small_disks: SmallDisks, engine: str, size: str, larger: str
) -> None:
    if engine == "edge":
        pytest.importorskip("qdrant_edge", reason="the edge extra is not installed")
    disk = small_disks.mount(size)
    rows = (
        {"id": n, "text": f"text {n}", "filler": "x" * (8000 if engine == "local" else 200_000)} for n in range(300)
    )
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["ingest", "in.jsonl", "--collection", "docs", "--path", disk / "store", "--store", engine]
    result = gircse(*command, *tiny_model)
    assert (result.code, result.out) == (4, "")
    assert result.err.startswith("error: ") and "disk is full" in result.err and result.err.count("\n") == 1
    small_disks.resize(disk, larger)
    with closing(open_client(disk / "store")) as client:
        written = client.count("docs").count
    assert 0 < written < 300
    again = gircse(*command, "--json", *tiny_model)
    assert (again.code, again.json["unchanged"], again.json["added"]) == (0, written, 300 - written)
