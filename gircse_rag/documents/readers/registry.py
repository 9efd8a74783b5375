"""Files and folders: which reader reads what, and how a file is opened so that none can block or deceive."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from gircse_rag.documents.document import Document, SkippedFile
from gircse_rag.documents.languages import LANGUAGE_OF_SUFFIX
from gircse_rag.documents.readers.csv import read_csv
from gircse_rag.documents.readers.html import read_html
from gircse_rag.documents.readers.jsonl import read_jsonl
from gircse_rag.documents.readers.parquet import read_parquet
from gircse_rag.documents.readers.pdf import read_pdf
from gircse_rag.documents.readers.source import Reader, Source
from gircse_rag.documents.readers.text import read_code, read_markdown, read_text
from gircse_rag.errors import InputError, MissingExtraError

READERS: dict[str, Reader] = {
    ".txt": read_text,
    ".rst": read_text,
    ".md": read_markdown,
    ".markdown": read_markdown,
    ".html": read_html,
    ".htm": read_html,
    ".xhtml": read_html,
    ".pdf": read_pdf,
    ".jsonl": read_jsonl,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
    **dict.fromkeys(LANGUAGE_OF_SUFFIX, read_code),
}
SUFFIXES = tuple(READERS)
ROW_SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet")
"""Of files in which every row is a document."""
# Rows of one file that are named when they are skipped; the others are counted, for there may be millions.
_NAMED_ROWS = 1000
# Each of the last two is there on one system only.
_OPEN = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def walk(root: Path, read_folders: set[tuple[int, int]]) -> Iterator[Path | SkippedFile]:
    """The files at and below `root`, folders in sorted order; every real folder once, under the first path to it."""
    waiting = [root]
    while waiting:
        path = waiting.pop()
        try:
            status = path.stat()
            if not stat.S_ISDIR(status.st_mode):
                yield path
                continue
            identity = (status.st_dev, status.st_ino)
            if identity in read_folders:
                continue
            read_folders.add(identity)
            with os.scandir(path) as entries:
                names = sorted((entry.name for entry in entries if not entry.name.startswith(".")), reverse=True)
        except OSError as error:
            yield SkippedFile(_printable(path), _unreadable(error))
            continue
        waiting += [path / name for name in names]


def read_file(path: Path, name: str, text_field: str, id_field: str | None) -> Iterator[Document | SkippedFile]:
    """The documents of one file, whose id, or the beginning of whose ids, is `name`.

    The last one is held back until the file has been looked at again: if it changed meanwhile, what came last may be
    half of the old and half of the new.
    """
    place = _printable(path)
    suffix = path.suffix.lower()
    try:
        name.encode()
    except UnicodeEncodeError:
        yield SkippedFile(place, "the file's name is not valid UTF-8, so it cannot name a document; rename it")
        return
    if suffix not in READERS:
        yield SkippedFile(place, f"no reader for {suffix or 'files without a suffix'}")
        return
    held: Document | SkippedFile | None = None
    problem: str | None = None
    skipped = 0
    try:
        # Opening a pipe waits for a writer that never comes, and opening a device may do anything.
        if not path.is_file():
            raise InputError("not a regular file")
        with os.fdopen(os.open(path, _OPEN), "rb") as file:
            before = os.fstat(file.fileno())
            if not stat.S_ISREG(before.st_mode):
                raise InputError("not a regular file")
            try:
                for found in READERS[suffix](Source(file, place, name, suffix, text_field, id_field)):
                    skipped += isinstance(found, SkippedFile)
                    if isinstance(found, SkippedFile) and skipped > _NAMED_ROWS:
                        continue
                    if held is not None:
                        yield held
                    held = found
            except (InputError, MissingExtraError) as error:
                problem = str(error)
            if _state(os.fstat(file.fileno())) != _state(before):
                held, problem = None, "it changed while it was read; run again when it is at rest"
    except InputError as error:
        problem = str(error)
    except OSError as error:
        problem = _unreadable(error)
    if held is not None:
        yield held
    if skipped > _NAMED_ROWS:
        yield SkippedFile(place, f"{skipped - _NAMED_ROWS} more of its rows gave no document")
    if problem is not None:
        yield SkippedFile(place, problem)


def _state(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


def _printable(path: Path) -> str:
    """File names are bytes; those that are no UTF-8 still have to be shown."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _unreadable(error: OSError) -> str:
    return f"cannot be read: {error.strerror or error}"
