"""Document, and reading documents from .txt, .md and .jsonl files and folders of them.

Nothing is passed over in silence: what cannot be read comes out of `read_documents` as a `SkippedFile`, in its place.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gircse_rag.errors import InputError

SUFFIXES = (".txt", ".md", ".jsonl")
_SUFFIX_LIST = ", ".join(SUFFIXES)


@dataclass(frozen=True)
class Document:
    """A text and what is known about it.

    Attributes:
        id: names the document in its collection. Ingesting the same id again replaces the document, so an id has to be
            the same in every run; `read_documents` says what it uses.
        text: any length; it is cut into chunks that fit the model.
        metadata: JSON values under string keys; comes back with every hit.
        markdown: cut at headings and blocks, and keep the path of headings.
    """

    id: str
    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    markdown: bool = False


@dataclass(frozen=True)
class SkippedFile:
    """A file, folder or line of a .jsonl that gave no document.

    Attributes:
        path: as it was found; where to look.
        reason: for people.
        line: counted from 1, for a line of a .jsonl, else None: the whole file was skipped.
    """

    path: str
    reason: str
    line: int | None = None

    def __str__(self) -> str:
        place = self.path if self.line is None else f"{self.path}, line {self.line}"
        return f"{place}: {self.reason}"


def read_documents(
    paths: Sequence[str | os.PathLike[str]] | str | os.PathLike[str],
) -> Iterator[Document | SkippedFile]:
    """Read files, and folders with everything below them, one document at a time.

    A document's id is its file's path relative to the folder that was passed, with forward slashes ("guide/start.md");
    a file passed by itself has its name for an id. So ids do not change with the working directory or with where the
    folder lies. Two folders that both hold a "README.md" collide, which `ingest` reports: pass their parent.

    Files are UTF-8 (a byte order mark is dropped). Each line of a .jsonl is an object with `text` (a string), and, if
    it likes, `id` (a string or an integer: the document is "faq.jsonl#7"; without one it is named by its line,
    "faq.jsonl:12") and `metadata` (an object). Fields of any other name are kept as metadata.

    Folders are read in sorted order. Names that start with a dot are left out. Symbolic links are followed, and every
    real folder is read once, so a loop of links ends.

    Raises:
        InputError: a path does not exist, at once and before anything is read (index: which path).
    """
    given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    roots = [Path(path) for path in given]
    for index, root in enumerate(roots):
        if not os.path.lexists(root):
            raise InputError(f"{root} does not exist; give a {_SUFFIX_LIST} file, or a folder", index=index)
    return _read_roots(roots)


def _read_roots(roots: list[Path]) -> Iterator[Document | SkippedFile]:
    read_folders: set[tuple[int, int]] = set()
    for root in roots:
        for found in _walk(root, read_folders):
            if isinstance(found, SkippedFile):
                yield found
            else:
                relative = found.name if found == root else found.relative_to(root).as_posix()
                yield from _read_file(found, relative)


def _walk(path: Path, read_folders: set[tuple[int, int]]) -> Iterator[Path | SkippedFile]:
    try:
        status = path.stat()
        if not stat.S_ISDIR(status.st_mode):
            yield path
            return
        identity = (status.st_dev, status.st_ino)
        if identity in read_folders:
            yield SkippedFile(_printable(path), "this folder was already read under another path")
            return
        read_folders.add(identity)
        names = sorted(entry.name for entry in os.scandir(path) if not entry.name.startswith("."))
    except OSError as error:
        yield SkippedFile(_printable(path), _unreadable(error))
        return
    for name in names:
        yield from _walk(path / name, read_folders)


def _read_file(path: Path, relative: str) -> Iterator[Document | SkippedFile]:
    place = _printable(path)
    suffix = path.suffix.lower()
    try:
        relative.encode()
    except UnicodeEncodeError:
        yield SkippedFile(place, "the file's name is not valid UTF-8, so it cannot name a document; rename it")
        return
    if suffix not in SUFFIXES:
        yield SkippedFile(place, f"only {_SUFFIX_LIST} files are read")
        return
    try:
        # Opening a pipe would wait for a writer that never comes.
        if not path.is_file():
            yield SkippedFile(place, "not a regular file")
        elif suffix == ".jsonl":
            yield from _read_jsonl(path, place, relative)
        else:
            yield _read_text(path, place, relative, markdown=suffix == ".md")
    except OSError as error:
        yield SkippedFile(place, _unreadable(error))


def _read_text(path: Path, place: str, relative: str, *, markdown: bool) -> Document | SkippedFile:
    data = path.read_bytes()
    if b"\0" in data:
        return SkippedFile(place, "binary: it holds zero bytes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return SkippedFile(place, f"not UTF-8 text (byte {error.start}); convert it first")
    if not text.strip():
        return SkippedFile(place, "empty")
    return Document(relative, text, {}, markdown)


def _read_jsonl(path: Path, place: str, relative: str) -> Iterator[Document | SkippedFile]:
    empty = True
    with path.open("rb") as file:
        if b"\0" in file.read(8192):
            yield SkippedFile(place, "binary: it holds zero bytes")
            return
        file.seek(0)
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                empty = False
                try:
                    yield _read_line(line, relative, number)
                except InputError as error:
                    yield SkippedFile(place, str(error), number)
    if empty:
        yield SkippedFile(place, "empty")


def _read_line(line: bytes, relative: str, number: int) -> Document:
    try:
        value = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 text (byte {error.start} of the line)") from error
    except json.JSONDecodeError as error:
        raise InputError(f"not JSON: {error.msg} at character {error.pos + 1}") from error
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits; brackets without end
        raise InputError(f"not JSON that can be read: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"a {type(value).__name__}, not an object with a field 'text'")
    text, name, metadata = value.pop("text", None), value.pop("id", None), value.pop("metadata", None)
    if not isinstance(text, str) or not text.strip():
        raise InputError("the field 'text' is missing, empty or not a string")
    if name is not None and (isinstance(name, bool) or not isinstance(name, str | int)):
        raise InputError(f"the field 'id' is a {type(name).__name__}, not a string or an integer")
    if metadata is not None and not isinstance(metadata, dict):
        raise InputError(f"the field 'metadata' is a {type(metadata).__name__}, not an object")
    own_id = f"{relative}:{number}" if name is None else f"{relative}#{name}"
    return Document(own_id, text, {**value, **(metadata or {})})


def _printable(path: Path) -> str:
    """File names are bytes; those that are no UTF-8 still have to be shown."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _unreadable(error: OSError) -> str:
    return f"cannot be read: {error.strerror or error}"
