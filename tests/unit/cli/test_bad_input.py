"""What goes wrong around `gircse ingest`: each a clear line, the rest goes on, and the exit code tells."""

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

KEPT = ["--collection", "docs", "--path", "store"]


@contextmanager
def _always_changing(path: Path) -> Iterator[None]:
    """Somebody writes into the file while the block lasts."""
    done = threading.Event()

    def write() -> None:
        for moment in itertools.count(1):
            if done.wait(0.001):
                return
            os.utime(path, ns=(moment, moment))

    writing = threading.Thread(target=write)
    writing.start()
    try:
        yield
    finally:
        done.set()
        writing.join()


def _lines(path: Path, count: int, start: int = 0) -> None:
    rows = ({"id": n, "text": f"{path.stem} number {n}"} for n in range(start, start + count))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_every_bad_file_is_named_and_the_rest_goes_in(gircse: Gircse, tiny_model: list[str], tmp_path: Path) -> None:
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
    _lines(folder / "changing.jsonl", 600)
    with _always_changing(folder / "changing.jsonl"):
        ran = gircse("ingest", folder, *KEPT, "--json", *tiny_model)
    assert ran.code == 1
    reasons = {
        "bomb.parquet": "30,0",
        "bomb.pdf": "unpacks to more than is read",
        "changing.jsonl": "it changed while it was read; run again",
        "closed.pdf": "it has a password; save it without one",
        "large.txt": "too large (500,000,000 bytes)",
        "pictures.pdf": "no text, only pictures",
        "raw.parquet": "row 2: the field 'raw' cannot be metadata",
        "ring.txt": "cannot be read",
    }
    assert {Path(skip["path"]).name for skip in ran.json["skipped"]} == set(reasons)
    lines = ran.err.splitlines()
    for name, reason in reasons.items():
        (line,) = [line for line in lines if f"{folder / name}:" in line or f"{folder / name}, " in line]
        assert line.startswith("skipped: ") and reason in line
    assert [failed["id"] for failed in ran.json["failed"]] == ["twice.jsonl#1"]
    (line,) = [line for line in lines if line.startswith("failed: ")]
    assert "its id was used before in this run" in line
    assert len(lines) == len(reasons) + 1
    assert ran.json["added"] >= 4
    with closing(open_client(tmp_path / "store")) as client:
        points, _ = client.scroll("docs", limit=1000)
    stored = {(point.payload or {})["doc_id"] for point in points}
    assert {"good.txt", "zz last.md", "twice.jsonl#1", "raw.parquet:1"} <= stored
    assert stored - {"good.txt", "zz last.md", "twice.jsonl#1", "raw.parquet:1"} <= {
        f"changing.jsonl#{n}" for n in range(600)
    }

    at_rest = gircse("ingest", folder, *KEPT, "--json", *tiny_model)
    assert at_rest.code == 1 and at_rest.json["unchanged"] == ran.json["added"], "the others are no better now"
    assert at_rest.json["added"] == 604 - ran.json["added"]


@pytest.mark.filterwarnings("ignore:Api key")
def test_a_wrong_key_is_named_and_not_tried_again(
    gircse: Gircse, tiny_model: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("one")
    monkeypatch.setenv("QDRANT_API_KEY", "wrong")
    with Shim(api_key="right") as shim:
        ran = gircse("ingest", "a.txt", "--collection", "docs", "--url", shim.url, *tiny_model)
        assert (ran.code, ran.out, len(shim.requests)) == (4, "", 1)
    assert ran.err.startswith("error: ") and ran.err.count("\n") == 1
    assert "HTTP 401" in ran.err and "QDRANT_API_KEY" in ran.err and "wrong" not in ran.err


def test_a_collection_deleted_under_the_run_is_named_and_made_anew(
    gircse: Gircse, tiny_model: list[str], tmp_path: Path
) -> None:
    _lines(tmp_path / "many.jsonl", 1000)
    with Shim() as shim:
        command = ["ingest", "many.jsonl", "--collection", "docs", "--url", shim.url, "--json", *tiny_model]

        def delete() -> None:
            while shim.requests.count(("PUT", "/collections/docs/points")) < 3:
                time.sleep(0.005)
            with shim.quiet():
                shim.store.delete_collection("docs")

        deleting = threading.Thread(target=delete)
        deleting.start()
        ran = gircse(*command)
        deleting.join()
        assert (ran.code, ran.out) == (4, "")
        assert ran.err == (
            "error: collection 'docs' is gone: something deleted it meanwhile; run again, and all of it is made anew\n"
        )
        again = gircse(*command)
        assert (again.code, again.json["added"]) == (0, 1000)


@pytest.mark.parametrize(("engine", "size", "larger"), [("local", "2m", "60m"), ("edge", "180m", "600m")])
def test_a_full_disk_is_named_and_the_same_command_goes_on(
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
    ran = gircse(*command, *tiny_model)
    assert (ran.code, ran.out) == (4, "")
    assert ran.err.startswith("error: ") and "disk is full" in ran.err and ran.err.count("\n") == 1
    small_disks.resize(disk, larger)
    with closing(open_client(disk / "store")) as client:
        written = client.count("docs").count
    assert 0 < written < 300
    again = gircse(*command, "--json", *tiny_model)
    assert (again.code, again.json["unchanged"], again.json["added"]) == (0, written, 300 - written)
