from __future__ import annotations

import json
import shutil
import signal
import socket
import sqlite3
import subprocess
import time
from contextlib import closing
from pathlib import Path

import pytest

from gircse_rag.qdrant import open_client
from tests.pdfs import make_pdf
from tests.processes import interruptible
from tests.unit.cli.conftest import Gircse
from tests.unit.cli.test_app import GIRCSE

STORE = ["--collection", "docs", "--path", "store"]


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "a.md").write_text("# Files\n\nOpen a file with open().\n")
    (folder / "b.txt").write_text("Sort a list with sorted().\n")
    (folder / "c.jsonl").write_text('{"text": "Cats purr.", "id": 7, "metadata": {"kind": "animal"}}\n')
    return folder


def test_ingest_search_and_ingest_again(gircse: Gircse, tiny_model: list[str], notes: Path) -> None:
    first = gircse("ingest", notes, *STORE, "--json", *tiny_model)
    assert (first.code, first.err) == (0, "")
    assert {key: first.json[key] for key in ("collection", "added", "unchanged", "embedded", "failed", "skipped")} == {
        "collection": "docs",
        "added": 3,
        "unchanged": 0,
        "embedded": 3,
        "failed": [],
        "skipped": [],
    }
    again = gircse("ingest", notes, *STORE, "--json", *tiny_model)
    assert (again.json["unchanged"], again.json["embedded"]) == (3, 0)
    assert "3 unchanged" in gircse("ingest", notes, *STORE, *tiny_model).out

    found = gircse("search", "cats", *STORE, "--instruction", "find animals", "--json", *tiny_model)
    assert (found.code, found.err) == (0, "")
    assert (found.json["question"], found.json["instruction"]) == ("cats", "find animals")
    hits = {hit["document"]: hit for hit in found.json["hits"]}
    assert set(hits) == {"a.md", "b.txt", "c.jsonl#7"}
    assert hits["c.jsonl#7"]["metadata"]["kind"] == "animal"
    scores = [hit["score"] for hit in found.json["hits"]]
    assert scores == sorted(scores, reverse=True)

    table = gircse("search", "cats", *STORE, "--limit", "1", *tiny_model)
    assert (table.code, table.err) == (0, "")
    assert sum(name in table.out for name in hits) == 1


def test_a_link_out_of_the_folder_is_named_and_nothing_is_deleted_because_of_it(
    gircse: Gircse, tiny_model: list[str], notes: Path, tmp_path: Path
) -> None:
    (tmp_path / "key.txt").write_text("secret")
    (notes / "link.txt").symlink_to(tmp_path / "key.txt")
    followed = gircse("ingest", notes, *STORE, "--follow-symlinks", "--json", *tiny_model)
    assert (followed.code, followed.json["added"]) == (0, 4)
    result = gircse("ingest", notes, *STORE, "--sync", "--json", *tiny_model)
    assert result.code == 1 and result.json["gone"] == ["link.txt"] and result.json["removed"] == 0
    assert [Path(skip["path"]).name for skip in result.json["skipped"]] == ["link.txt"]
    assert "--follow-symlinks" in result.err and str(tmp_path / "key.txt") in result.err


def test_unreadable_files_are_reported_and_the_rest_is_ingested(
    gircse: Gircse, tiny_model: list[str], notes: Path
) -> None:
    (notes / "picture.png").write_bytes(b"\x89PNG\0")
    picture = gircse("ingest", notes, *STORE, "--json", *tiny_model)
    assert picture.code == 0, "an unsupported file type failed the run"
    assert "skipped: " in picture.err and "picture.png" in picture.err

    (notes / "latin.txt").write_bytes(b"K\xe4fer")
    (notes / "c.jsonl").write_text('{"text": "Cats purr.", "id": 7}\nnot json\n')
    result = gircse("ingest", notes, *STORE, "--json", *tiny_model)
    assert result.code == 1
    assert sorted((Path(skip["path"]).name, skip["line"]) for skip in result.json["skipped"]) == [
        ("c.jsonl", 2),
        ("latin.txt", None),
        ("picture.png", None),
    ]
    assert result.json["updated"] == 1 and result.json["unchanged"] == 2
    assert "c.jsonl, line 2: not JSON" in result.err


def test_a_terminal_sees_progress_in_documents(
    gircse: Gircse, tiny_model: list[str], notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes stderr for a terminal
    monkeypatch.setenv("COLUMNS", "100")
    result = gircse("ingest", notes, *STORE, "--json", *tiny_model)
    assert result.json["added"] == 3
    assert "documents" in result.err and "3/3" in result.err


def test_a_long_list_of_skipped_files_is_shortened_except_in_json(
    gircse: Gircse, tiny_model: list[str], notes: Path
) -> None:
    for number in range(30):
        (notes / f"{number}.png").write_bytes(b"\0")
    result = gircse("ingest", notes, *STORE, "--json", *tiny_model)
    assert len(result.json["skipped"]) == 30
    assert result.err.count("\n") == 21 and "and 10 more" in result.err


def test_a_document_that_fails_makes_exit_code_1(gircse: Gircse, tiny_model: list[str], notes: Path) -> None:
    (notes / "bell.txt").write_text("a \x07 bell")
    result = gircse("ingest", notes, *STORE, "--json", *tiny_model)
    assert (result.code, result.json["added"]) == (1, 3)
    assert [failed["id"] for failed in result.json["failed"]] == ["bell.txt"]
    assert "failed: bell.txt: " in result.err


def test_nothing_to_ingest_is_an_error(gircse: Gircse, tiny_model: list[str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert gircse("ingest", "empty", *STORE, *tiny_model).code == 1
    missing = gircse("ingest", "missing", *STORE, *tiny_model)
    assert (missing.code, missing.out) == (5, "")
    assert "missing does not exist" in missing.err


def test_store_errors_exit_4(
    gircse: Gircse, tiny_model: list[str], notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "there is no Qdrant store" in _refused(gircse, "search", "cats", *STORE, *tiny_model)
    assert gircse("ingest", notes, *STORE, *tiny_model).code == 0
    other = ["--collection", "other", "--path", "store"]
    assert "there is no collection 'other'" in _refused(gircse, "search", "cats", *other, *tiny_model)

    changed = tmp_path / "changed"
    changed.mkdir()
    for file in Path(tiny_model[1]).iterdir():
        (changed / file.name).write_bytes(file.read_bytes())
    (changed / "gircse.json").write_text('{"temperature": 2.0}')
    message = _refused(gircse, "search", "cats", *STORE, "--model", changed, *tiny_model[2:])
    assert "temperature: this embedder 2.0, collection 'docs' 1.0" in message

    with closing(open_client(tmp_path / "store")):
        assert "one client at a time" in _refused(gircse, "search", "cats", *STORE, *tiny_model)
        assert "one client at a time" in _refused(gircse, "ingest", notes, *STORE, *tiny_model)

    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
    monkeypatch.setenv("QDRANT_URL", f"http://127.0.0.1:{port}")
    assert "does not answer" in _refused(gircse, "search", "cats", "--collection", "docs", *tiny_model)


def _refused(gircse: Gircse, *arguments: str | Path) -> str:
    result = gircse(*arguments)
    assert (result.code, result.out) == (4, "")
    assert result.err.startswith("error: ")
    return result.err


@pytest.mark.slow
def test_an_interrupted_ingest_resumes_where_it_stopped(gircse: Gircse, tiny_model: list[str], tmp_path: Path) -> None:
    many = tmp_path / "many.jsonl"
    total = 600
    many.write_text("".join(json.dumps({"text": f"text number {n}"}) + "\n" for n in range(total)))
    process = interruptible(
        [*GIRCSE, "ingest", "many.jsonl", *STORE, *tiny_model],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not _count_points(tmp_path / "store"):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert (process.returncode, out) == (130, ""), err
    (line,) = (line for line in err.splitlines() if not line.startswith("documents: "))  # progress, on a busy machine
    assert line.startswith("interrupted: ")

    stored = _count_points(tmp_path / "store")
    assert 0 < stored < total
    result = gircse("ingest", many, *STORE, "--json", *tiny_model)
    assert (result.code, result.json["unchanged"], result.json["added"]) == (0, stored, total - stored)
    assert _count_points(tmp_path / "store") == total


@pytest.mark.slow
def test_a_killed_ingest_of_pdfs_is_completed_by_the_next(
    gircse: Gircse, tiny_model: list[str], tmp_path: Path
) -> None:
    folder, total = tmp_path / "papers", 150
    folder.mkdir()
    for number in range(total):
        make_pdf(folder / f"{number}.pdf", f"Paper {number} has one page.")
    command = ["ingest", "papers", *STORE, *tiny_model]
    for _ in range(5):  # retry: on a busy machine the ingest may finish before it is killed
        process = subprocess.Popen(
            [*GIRCSE, *command], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        while not _count_points(tmp_path / "store"):
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.kill()
        process.communicate()
        stored = _count_points(tmp_path / "store")
        if stored < total:
            break
        shutil.rmtree(tmp_path / "store")
    assert 0 < stored < total
    result = gircse(*command, "--json")
    assert (result.code, result.json["unchanged"], result.json["added"], result.json["embedded"]) == (
        0,
        stored,
        total - stored,
        total - stored,
    )
    found = gircse("search", "paper", *STORE, "--limit", "1000", "--json", *tiny_model)
    assert {hit["document"] for hit in found.json["hits"]} == {f"{number}.pdf" for number in range(total)}
    assert {hit["metadata"]["_chunk"]["page"] for hit in found.json["hits"]} == {1}


def _count_points(store: Path) -> int:
    file = store / "collection" / "docs" / "storage.sqlite"
    if not file.exists():
        return 0
    try:
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as database:
            return int(database.execute("SELECT count(*) FROM points").fetchone()[0])
    except sqlite3.OperationalError:  # the table does not exist yet
        return 0


def test_sync_removes_gone_documents_and_a_dry_run_only_lists_them(
    gircse: Gircse, tiny_model: list[str], notes: Path
) -> None:
    assert gircse("ingest", notes, *STORE, *tiny_model).code == 0
    (notes / "b.txt").unlink()
    dry_run = gircse("ingest", notes, *STORE, "--sync-dry-run", *tiny_model)
    assert (dry_run.code, dry_run.err) == (0, "would delete: b.txt\n")
    assert " ".join(dry_run.out.split()).startswith(
        "docs: would add 0, update 0, delete 1; 2 unchanged, 0 failed, 0 skipped; 0 chunks"
    )
    elsewhere = gircse("ingest", notes / "a.md", *STORE, "--sync", "--json", *tiny_model)
    assert elsewhere.json["gone"] == [], "another path is another source"

    assert gircse("ingest", notes, *STORE, *tiny_model).code == 0  # a.md belongs to this source again
    (notes / "a.md").write_bytes(b"K\xe4fer")
    kept = gircse("ingest", notes, *STORE, "--sync", "--json", *tiny_model)
    assert (kept.code, kept.json["removed"]) == (1, 0) and "could not be read" in kept.json["kept_because"]

    (notes / "a.md").write_text("# Files\n\nOpen a file with open().\n")
    gone = gircse("ingest", notes, *STORE, "--sync", "--json", *tiny_model)
    assert (gone.code, gone.json["gone"], gone.json["removed"]) == (0, ["b.txt"], 1)
    assert "removed: b.txt" in gone.err


def test_an_empty_answer_says_why(gircse: Gircse, tiny_model: list[str], notes: Path) -> None:
    assert gircse("ingest", notes, *STORE, *tiny_model).code == 0
    for options, reason in (
        (["--filter", "kind=plant"], "no document has kind = 'plant'; values there: 'animal'"),
        (["--filter", "colour=red"], "no document has the key 'colour'; keys there: source, kind"),
        (["--min-score", "1"], "3 chunks: all score below 1; the best has 0."),
        (["--offset", "5"], "the offset 5 skips every hit (3 chunks)"),
    ):
        result = gircse("search", "cats", *STORE, *options, *tiny_model)
        assert result.code == 0 and result.err.startswith(f"note: no hits: {reason}"), result.err
    assert gircse("search", "cats", *STORE, "--filter", "kind=plant", "--json", *tiny_model).json["hits"] == []


def test_a_dry_run_writes_no_file(gircse: Gircse, tiny_model: list[str], notes: Path) -> None:
    (notes / "a.md").write_bytes(b"K\xe4fer")
    result = gircse("ingest", notes, *STORE, "--sync-dry-run", "--json", *tiny_model)
    assert result.json["to_add"] == ["b.txt", "c.jsonl#7"] and result.json["to_embed"] == 2, result.err
    assert (result.json["embedded"], result.json["added"]) == (0, 0)
    assert "would add: b.txt\n" in result.err
    assert not Path("store").exists()


def test_duplicate_texts_are_reported(gircse: Gircse, tiny_model: list[str], notes: Path) -> None:
    (notes / "copy.txt").write_text("Sort a list with sorted().\n")
    result = gircse("ingest", notes, *STORE, "--json", *tiny_model)
    assert (result.code, result.json["added"], result.json["duplicates"]) == (0, 4, [{"id": "copy.txt", "of": "b.txt"}])
    assert "duplicate: copy.txt: the same text as b.txt" in result.err
