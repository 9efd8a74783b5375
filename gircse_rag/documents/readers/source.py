"""What a reader gets: an open file that is known to be a regular one, and the limits it keeps to."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from gircse_rag.documents.document import Document, SkippedFile
from gircse_rag.errors import InputError

# Of one document: a text file, a page of HTML, the text of a PDF, a row. A document is held and cut whole, and its
# vectors wait until the last is there; more than this is a collection in one file, and those are read row by row.
MAX_BYTES = 8 * 2**20


@dataclass(frozen=True)
class Source:
    """A file to read.

    Attributes:
        file: open, at its beginning.
        path: for people.
        id: what its document is called, or what the ids of its rows begin with.
        suffix: lower case, with the dot.
        text_field: the field or column of a row that is its text.
        id_field: the one that names it; None: "id", if there is one.
    """

    file: BinaryIO
    path: str
    id: str
    suffix: str
    text_field: str = "text"
    id_field: str | None = None

    def read(self) -> bytes:
        """All of it.

        Raises:
            InputError: it is larger than a document may be.
        """
        data = self.file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            size = max(os.fstat(self.file.fileno()).st_size, len(data))
            raise InputError(
                f"too large ({size:,} bytes): a document has at most {MAX_BYTES // 2**20} MiB; "
                "split it, or make it a .jsonl with a text a line"
            )
        return data

    def text(self) -> str:
        """All of it, as UTF-8 without a byte order mark.

        Raises:
            InputError: too large, binary, or in another encoding.
        """
        data = self.read()
        if data.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise InputError("UTF-16, by its byte order mark, not UTF-8; convert it first")
        if b"\0" in data:
            raise InputError("binary: it holds zero bytes")
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(f"not UTF-8 text (byte {error.start}); convert it first") from error

    def lines(self) -> Iterator[bytes | None]:
        """Its lines, without a byte order mark; None for one that is longer than a document may be."""
        first = True
        while line := self.file.readline(MAX_BYTES + 1):
            if first:
                line, first = line.removeprefix(b"\xef\xbb\xbf"), False
            whole = len(line) <= MAX_BYTES
            while not line.endswith(b"\n") and len(line) > MAX_BYTES:
                line = self.file.readline(MAX_BYTES + 1)
            yield line if whole else None

    def skipped(self, reason: str, line: int | None = None) -> SkippedFile:
        return SkippedFile(self.path, reason, line)


# Yields as it reads. What is wrong with the whole file it raises, an InputError or a MissingExtraError; what is wrong
# with one row it yields.
Reader = Callable[[Source], Iterator[Document | SkippedFile]]
