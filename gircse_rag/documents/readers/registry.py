"""Maps file suffixes to readers, walks folders, and opens files so that pipes and devices cannot block."""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gircse_rag.documents.document import Document, SkippedFile
from gircse_rag.documents.languages import LANGUAGE_OF_SUFFIX
from gircse_rag.documents.readers.csv import read_csv
from gircse_rag.documents.readers.docx import read_docx
from gircse_rag.documents.readers.html import read_html
from gircse_rag.documents.readers.json import read_json
from gircse_rag.documents.readers.jsonl import read_jsonl
from gircse_rag.documents.readers.notebook import read_notebook
from gircse_rag.documents.readers.parquet import read_parquet
from gircse_rag.documents.readers.pdf import read_pdf
from gircse_rag.documents.readers.source import Reader, Source
from gircse_rag.documents.readers.text import read_code, read_markdown, read_text
from gircse_rag.errors import InputError, MissingExtraError

READERS: dict[str, Reader] = {
    **dict.fromkeys((".txt", ".rst"), read_text),
    **dict.fromkeys((".md", ".markdown"), read_markdown),
    **dict.fromkeys((".html", ".htm", ".xhtml"), read_html),
    ".pdf": read_pdf,
    ".docx": read_docx,
    ".ipynb": read_notebook,
    ".jsonl": read_jsonl,
    ".json": read_json,
    **dict.fromkeys((".csv", ".tsv"), read_csv),
    ".parquet": read_parquet,
    **dict.fromkeys(LANGUAGE_OF_SUFFIX, read_code),
}
SUFFIXES = tuple(READERS)
ROW_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
"""Suffixes of files in which every row is a document; a .json may also be one document."""
# Skipped rows reported per file. Further ones are only counted, because there may be millions.
_NAMED_ROWS = 1000
_LEADS_OUT = (
    "a symbolic link out of the folder, to {}; to follow such links, pass --follow-symlinks (follow_symlinks=True)"
)
# O_NONBLOCK exists only on Unix, O_BINARY only on Windows.
_OPEN = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


class _NonBlockingFile(io.FileIO):
    """Raises BlockingIOError if a read would block, as of a kernel log; FileIO returns None, which readers misread."""

    def readinto(self, buffer: Any) -> int:
        count = super().readinto(buffer)
        if count is None:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return count


def walk(
    root: Path, read_folders: set[tuple[int, int]], *, follow_symlinks: bool = False
) -> Iterator[Path | SkippedFile]:
    """Yield the files at and below `root` in sorted order; every real folder once, under the first path to it.

    `root` may be a symbolic link. Links below it that lead out of it are skipped, unless `follow_symlinks`.
    """
    real_root = os.path.realpath(root)
    stack = [root]
    while stack:
        path = stack.pop()
        try:
            if path != root and not follow_symlinks and path.is_symlink():
                target = os.path.realpath(path, strict=True)
                if not Path(target).is_relative_to(real_root):
                    yield SkippedFile(_display_path(path), _LEADS_OUT.format(_display_path(Path(target))))
                    continue
            status = path.stat()
            if not stat.S_ISDIR(status.st_mode):
                yield path
                continue
            identity = (status.st_dev, status.st_ino)
            if identity in read_folders:
                continue
            read_folders.add(identity)
            names = sorted((entry.name for entry in path.iterdir() if not entry.name.startswith(".")), reverse=True)
            stack += [path / name for name in names]
        except OSError as error:
            yield SkippedFile(_display_path(path), _describe_error(error))


def read_file(path: Path, name: str, text_field: str, id_field: str | None) -> Iterator[Document | SkippedFile]:
    """Read the documents of one file. `name` is the document's id, or the prefix of the rows' ids.

    The last document is yielded only after checking that the file did not change while it was read. If it changed, that
    document may mix old and new content and is dropped.
    """
    place = _display_path(path)
    suffix = path.suffix.lower()
    try:
        name.encode()
    except UnicodeEncodeError:
        yield SkippedFile(place, "the file name is not valid UTF-8, so it cannot be a document id; rename the file")
        return
    pending: Document | SkippedFile | None = None
    problem: str | None = None
    skipped = 0
    try:
        if suffix not in READERS:
            raise InputError(f"no reader for {suffix or 'files without a suffix'}")
        # Opening a pipe would wait for a writer, and opening a device may have side effects.
        if not path.is_file():
            raise InputError("not a regular file")
        with io.BufferedReader(_NonBlockingFile(os.open(path, _OPEN))) as file:
            before = os.fstat(file.fileno())
            if not stat.S_ISREG(before.st_mode):
                raise InputError("not a regular file")
            try:
                for item in READERS[suffix](Source(file, place, name, suffix, text_field, id_field)):
                    skipped += isinstance(item, SkippedFile)
                    if isinstance(item, SkippedFile) and skipped > _NAMED_ROWS:
                        continue
                    if pending is not None:
                        yield pending
                    pending = item
            except (InputError, MissingExtraError) as error:
                problem = str(error)
            if _size_and_time(os.fstat(file.fileno())) != _size_and_time(before):
                pending, problem = None, "the file changed while it was read; run again once nothing writes to it"
    except (InputError, OSError) as error:
        problem = _describe_error(error)
    if pending is not None:
        yield pending
    if skipped > _NAMED_ROWS:
        yield SkippedFile(place, f"{skipped - _NAMED_ROWS} more rows of this file were skipped")
    if problem is not None:
        yield SkippedFile(place, problem)


def _size_and_time(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


def _display_path(path: Path) -> str:
    """The path as printable text: bytes of a file name that are not UTF-8 are escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _describe_error(error: InputError | OSError) -> str:
    return f"cannot be read: {error.strerror or error}" if isinstance(error, OSError) else str(error)
