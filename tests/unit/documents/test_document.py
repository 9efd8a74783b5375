from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from gircse_rag.documents.readers import count_documents
from gircse_rag.errors import InputError
from gircse_rag.qdrant import Document, SkippedFile, read_documents


def _write(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def _read(*paths: Path | str) -> tuple[list[Document], list[SkippedFile]]:
    found = list(read_documents(list(paths)))
    return [d for d in found if isinstance(d, Document)], [s for s in found if isinstance(s, SkippedFile)]


def test_a_folder_is_read_recursively_in_sorted_order_with_relative_ids(tmp_path: Path) -> None:
    _write(tmp_path, {"b.txt": "bee", "a/z.md": "# Zed", "a/B.TXT": "upper", "c.jsonl": '{"text": "line"}'})
    documents, skipped = _read(tmp_path)
    assert documents == [
        Document("a/B.TXT", "upper"),
        Document("a/z.md", "# Zed", markdown=True),
        Document("b.txt", "bee"),
        Document("c.jsonl:1", "line"),
    ]
    assert skipped == []


def test_ids_do_not_depend_on_how_the_folder_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path, {"docs/sub/a.txt": "text"})
    monkeypatch.chdir(tmp_path / "docs")
    for root in (tmp_path / "docs", Path(), Path("../docs"), "./"):
        assert [d.id for d in _read(root)[0]] == ["sub/a.txt"]
    assert [d.id for d in _read("sub/a.txt")[0]] == ["a.txt"]
    assert next(iter(read_documents("sub"))) == Document("a.txt", "text")


def test_text_is_unchanged_except_for_its_byte_order_mark(tmp_path: Path) -> None:
    text = "  línea uno\r\n\tзвёзды 你好 👩‍👩‍👧\n\n"
    _write(tmp_path, {"a.txt": b"\xef\xbb\xbf" + text.encode()})
    assert _read(tmp_path)[0] == [Document("a.txt", text)]


def test_files_without_text_are_skipped_with_a_reason(tmp_path: Path) -> None:
    _write(
        tmp_path,
        {
            "binary.txt": b"PK\0\0",
            "empty.txt": "",
            "good.txt": "good",
            "latin.md": "caf\xe9".encode("latin-1"),
            "picture.png": b"\x89PNG",
            "lines.jsonl": b"\0\0",
            "none.jsonl": "\n \n",
            "white.md": " \n\t ",
            ".hidden/a.txt": "no",
        },
    )
    (tmp_path / "dangling.txt").symlink_to(tmp_path / "nowhere")
    (tmp_path / "ring.txt").symlink_to(tmp_path / "ring.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    documents, skipped = _read(tmp_path)
    assert [d.id for d in documents] == ["good.txt"]
    reasons = {Path(s.path).name: s.reason for s in skipped}
    assert len(reasons) == len(skipped) == 10
    assert "zero bytes" in reasons["binary.txt"] and "zero bytes" in reasons["lines.jsonl"]
    assert reasons["empty.txt"] == reasons["white.md"] == reasons["none.jsonl"] == "empty"
    assert "byte 3" in reasons["latin.md"]
    assert "no reader for .png" in reasons["picture.png"]
    assert "No such file" in reasons["dangling.txt"]
    assert "cannot be read" in reasons["ring.txt"]
    assert reasons["pipe.txt"] == "not a regular file"


def test_a_loop_of_symbolic_links_ends_and_each_folder_is_read_once(tmp_path: Path) -> None:
    _write(tmp_path, {"a/one.txt": "1", "b/two.txt": "2"})
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "zb").symlink_to(tmp_path / "b")
    documents, skipped = _read(tmp_path)
    assert [d.id for d in documents] == ["a/one.txt", "a/zb/two.txt"] and skipped == []


@pytest.mark.parametrize("link", ["file", "folder", "relative", "chain", "through a linked folder", "parent"])
def test_a_link_out_of_the_folder_is_skipped_unless_it_may_be_followed(tmp_path: Path, link: str) -> None:
    _write(tmp_path, {"in/a.txt": "mine", "in/sub/b.txt": "mine too", "outside/key.txt": "secret"})
    root, outside = tmp_path / "in", tmp_path / "outside"
    made = root / "link.txt"
    match link:
        case "file":
            made.symlink_to(outside / "key.txt")
        case "folder":
            made.symlink_to(outside)
        case "relative":
            (made := root / "sub" / "link.txt").symlink_to("../../outside/key.txt")
        case "chain":
            (root / "hop.txt").symlink_to(outside / "key.txt")
            made.symlink_to("hop.txt")
        case "through a linked folder":
            (root / "sub" / "link.txt").symlink_to(outside / "key.txt")
            (made := root / "near").symlink_to("sub")
        case "parent":
            made.symlink_to("..")
    documents, skipped = _read(root)
    assert {d.text for d in documents} == {"mine", "mine too"}
    assert skipped and all("a symbolic link out of the folder, to " in s.reason for s in skipped)
    assert all("--follow-symlinks (follow_symlinks=True)" in s.reason for s in skipped)
    followed = list(read_documents(root, follow_symlinks=True))
    assert {found.text for found in followed if isinstance(found, Document)} == {"mine", "mine too", "secret"}
    assert count_documents([root]) == len(documents)
    assert count_documents([root], follow_symlinks=True) == len(followed)


def test_links_that_stay_in_the_folder_or_are_the_given_path_are_followed(tmp_path: Path) -> None:
    _write(tmp_path, {"in/sub/b.txt": "text", "outside/key.txt": "given", "in/..data/config.txt": "hidden"})
    root = tmp_path / "in"
    (root / "a.txt").symlink_to("sub/b.txt")
    (root / "c.txt").symlink_to(root / "sub" / ".." / "sub" / "b.txt")
    (root / "config.txt").symlink_to("..data/config.txt")  # as Kubernetes mounts a ConfigMap
    (tmp_path / "folder").symlink_to("in")
    (tmp_path / "file.txt").symlink_to("outside/key.txt")
    for given in (root, tmp_path / "folder"):
        documents, skipped = _read(given)
        assert [d.id for d in documents] == ["a.txt", "c.txt", "config.txt", "sub/b.txt"] and skipped == []
    assert _read(tmp_path / "file.txt") == ([Document("file.txt", "given")], [])
    (root / "sibling").symlink_to(tmp_path / "in2")  # its path begins like that of the folder
    _write(tmp_path, {"in2/d.txt": "other"})
    assert len(_read(root)[1]) == 1


def test_a_file_name_that_is_not_utf_8_is_skipped_with_an_escaped_name(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/caf\xe9.txt", "w") as file:  # noqa: PTH123 (a Path cannot hold the name)
        file.write("text")
    documents, (skipped,) = _read(tmp_path)
    assert documents == []
    assert skipped.path.endswith("caf\\xe9.txt") and "UTF-8" in skipped.reason
    skipped.path.encode()


def test_jsonl_lines_become_documents(tmp_path: Path) -> None:
    lines = [
        {"text": "by line"},
        {"text": "by name", "id": "faq-1"},
        {"text": "by number", "id": 7, "metadata": {"lang": "en"}, "title": "T"},
    ]
    _write(tmp_path, {"sub/x.jsonl": b"\xef\xbb\xbf" + "\n\n".join(json.dumps(line) for line in lines).encode()})
    assert _read(tmp_path)[0] == [
        Document("sub/x.jsonl:1", "by line"),
        Document("sub/x.jsonl#faq-1", "by name"),
        Document("sub/x.jsonl#7", "by number", {"title": "T", "lang": "en"}),
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{text: 1}", "not JSON"),
        (b'{"text": "half', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"text": "a", "n": ' + b"9" * 5000 + b"}", "not JSON that Python can read"),
        (b"[1]", "a list, not an object"),
        (b'{"txt": "a"}', "'text' is missing"),
        (b'{"text": "  "}', "'text' is missing, empty"),
        (b'{"text": 3}', "not a string"),
        (b'{"text": "a", "id": [1]}', "'id' is a list"),
        (b'{"text": "a", "id": true}', "'id' is a bool"),
        (b'{"text": "a", "metadata": "m"}', "'metadata' is a str"),
        (b'{"text": "caf\xe9"}', "not UTF-8"),
    ],
)
def test_a_bad_line_is_reported_and_the_rest_is_read(tmp_path: Path, line: bytes, reason: str) -> None:
    _write(tmp_path, {"x.jsonl": b'{"text": "first"}\n' + line + b'\n{"text": "third"}\n'})
    documents, (skipped,) = _read(tmp_path)
    assert [d.id for d in documents] == ["x.jsonl:1", "x.jsonl:3"]
    assert skipped.line == 2 and reason in skipped.reason
    assert str(skipped).startswith(f"{tmp_path / 'x.jsonl'}, line 2: ")


def test_a_path_that_does_not_exist_raises_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere does not exist") as caught:
        read_documents([tmp_path, tmp_path / "nowhere"])
    assert caught.value.index == 1


def test_files_are_opened_lazily(tmp_path: Path) -> None:
    _write(tmp_path, {"a.txt": "a", "b.txt": "b"})
    documents = read_documents(tmp_path)
    assert next(documents) == Document("a.txt", "a")
    (tmp_path / "b.txt").write_text("later")
    assert next(documents) == Document("b.txt", "later")


def test_counting_does_not_open_files_that_are_one_document(tmp_path: Path) -> None:
    """An invalid .pdf counts too: the count is for a progress bar, and reading every PDF twice would take hours."""
    _write(
        tmp_path, {"a.txt": "one", "b/c.md": "# two", "three.pdf": "no PDF", "picture.png": b"\x89PNG", ".d.txt": "no"}
    )
    _write(tmp_path, {"four.jsonl": '{"body": "x"}\n{"body": "y"}\nnot json\n{"text": "z"}\n', "e.csv": "body\nz\n"})
    (tmp_path / "b" / "up").symlink_to(tmp_path)
    assert count_documents([tmp_path], text_field="body") == 3 + 2 + 1
    assert count_documents([str(tmp_path / "four.jsonl"), tmp_path / "a.txt"]) == 1 + 1
