from __future__ import annotations

import inspect
import os
import signal
import stat
import sys
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from gircse_rag.documents.languages import LANGUAGES, grammar
from gircse_rag.documents.readers import registry
from gircse_rag.documents.readers.source import MAX_BYTES, Source
from gircse_rag.install_hint import install_command
from gircse_rag.qdrant import Document, SkippedFile, read_documents
from tests.unit.documents.readers import read, read_one, reason


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [
        ("a.html", "lxml.etree", "html"),
        ("a.pdf", "pypdf", "pdf"),
        ("a.parquet", "pyarrow", "parquet"),
        ("a.py", "tree_sitter_python", "code"),
    ],
)
def test_without_its_extra_a_file_is_skipped_and_the_reason_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / name).write_text("something")
    (tmp_path / "b.txt").write_text("goes in")
    (document,), (skipped,) = read(tmp_path)
    assert document.id == "b.txt"
    assert module in skipped.reason and install_command(extra) in skipped.reason


def test_source_code_records_its_language(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\n")
    assert read_one(tmp_path / "a.py") == Document("a.py", "x = 1\n", {"language": "python"}, language="python")
    (tmp_path / "__init__.py").touch()
    assert read(tmp_path / "__init__.py") == ([], [])
    (tmp_path / "a.rs").write_bytes(b"\0")
    assert "zero bytes" in reason(tmp_path / "a.rs")


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_language_has_its_grammar(language: str) -> None:
    assert grammar(language)


def test_oversized_files_are_refused_unread(tmp_path: Path) -> None:
    for name in ("a.txt", "b.md", "c.py", "d.html"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(500_000_000)
    tracemalloc.start()
    documents, skipped = read(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert documents == [] and len(skipped) == 4
    assert all("too large (500,000,000 bytes)" in s.reason and "8 MiB" in s.reason for s in skipped)
    assert peak < 3 * MAX_BYTES


def test_a_file_of_exactly_the_maximum_size_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"a" * MAX_BYTES)
    assert len(read_one(tmp_path / "a.txt").text) == MAX_BYTES
    (tmp_path / "a.txt").write_bytes(b"a" * (MAX_BYTES + 1))
    assert "too large" in reason(tmp_path / "a.txt")


def test_utf_16_files_are_reported_as_utf_16(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text", encoding="utf-16")
    (tmp_path / "b.csv").write_text("text\nrow\n", encoding="utf-16")
    assert "UTF-16" in reason(tmp_path / "a.txt") and "UTF-16" in reason(tmp_path / "b.csv")


def test_a_file_that_changes_while_it_is_read_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")

    def slow(source: Source) -> Iterator[Document]:
        text = source.text()
        with path.open("a") as file:
            file.write(", after")
        yield Document(source.id, text)

    monkeypatch.setitem(registry.READERS, ".txt", slow)
    assert "changed while it was read" in reason(path)
    monkeypatch.undo()
    assert read_one(path).text == "before, after"


def test_rows_before_a_change_are_kept_and_the_change_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"text": "{number}"}}\n' for number in range(50)))
    documents = read_documents(path)
    assert next(documents) == Document("a.jsonl:1", "0")
    with path.open("a") as file:
        file.write('{"text": "ha')
    *rest, last = documents
    assert [d.id for d in rest if isinstance(d, Document)][:49] == [f"a.jsonl:{n}" for n in range(2, 51)]
    assert isinstance(last, SkippedFile) and "changed while it was read" in last.reason
    assert sum("changed" in str(found) for found in rest) == 0


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    (tmp_path / "zero.txt").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "folder.pdf").mkdir()
    (tmp_path / "folder.pdf" / "in.txt").write_text("inside")
    documents, skipped = read(tmp_path, follow_symlinks=True)
    assert [d.id for d in documents] == ["folder.pdf/in.txt"]
    assert {Path(s.path).name: s.reason for s in skipped} == dict.fromkeys(
        ("zero.txt", "pipe.csv"), "not a regular file"
    )


def test_a_pipe_that_replaced_a_file_does_not_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    monkeypatch.setattr(Path, "is_file", lambda self: True)
    signal.alarm(10)  # kill the run instead of hanging
    try:
        assert reason(tmp_path / "pipe.txt") == "not a regular file"
    finally:
        signal.alarm(0)


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.jsonl", "a.html", "a.parquet", "a.pdf"])
def test_a_file_whose_read_would_block_is_skipped_and_the_rest_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A pipe with a silent writer stands for a regular file that blocks, such as a kernel log."""
    os.mkfifo(tmp_path / name)
    (tmp_path / "z.txt").write_text("after")
    monkeypatch.setattr(Path, "is_file", lambda self: True)
    monkeypatch.setattr(stat, "S_ISREG", lambda mode: True)
    writer = os.open(tmp_path / name, os.O_RDWR)
    try:
        (document,), (skipped,) = read(tmp_path)
    finally:
        os.close(writer)
    assert document.id == "z.txt" and skipped.path.endswith(name)


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="needs Unix users")
def test_without_permission_a_file_or_folder_is_skipped() -> None:
    # pytest's own folders are closed to other users, and root may read everything.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for closed in ("closed.txt", "shut/in.txt", "open.txt"):
            (folder / closed).parent.mkdir(exist_ok=True)
            (folder / closed).write_text("text")
        folder.chmod(0o755)
        for closed in ("closed.txt", "shut"):
            (folder / closed).chmod(0)
        me = os.geteuid()
        if me == 0:
            os.seteuid(65534)
        try:
            documents, skipped = read(folder)
        finally:
            os.seteuid(me)
            (folder / "shut").chmod(0o755)
    assert [d.id for d in documents] == ["open.txt"]
    assert [(Path(s.path).name, s.reason) for s in skipped] == [
        ("closed.txt", "cannot be read: Permission denied"),
        ("shut", "cannot be read: Permission denied"),
    ]


def test_folders_may_be_deeper_than_the_recursion_limit(tmp_path: Path) -> None:
    path = tmp_path.joinpath(*["d"] * 120)
    path.mkdir(parents=True)
    (path / "a.txt").write_text("deep")
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 60)
    try:
        found = list(read_documents(tmp_path))
    finally:
        sys.setrecursionlimit(limit)
    assert [d.text for d in found if isinstance(d, Document)] == ["deep"]


def test_after_1000_bad_rows_the_rest_are_only_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("bad\n" * 3000 + '{"text": "good"}\n')
    (document,), skipped = read(tmp_path)
    assert document.id == "a.jsonl:3001"
    assert [s.line for s in skipped] == [*range(1, 1001), None]
    assert skipped[-1].reason == "2000 more rows of this file were skipped"
