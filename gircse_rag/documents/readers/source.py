"""What a reader gets: an open regular file, with methods that enforce the size limits."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from gircse_rag.documents.document import Document, SkippedFile
from gircse_rag.errors import InputError

# Limit per document: a text file, an HTML page, the text of a PDF, a row. A document is kept in memory and cut in one
# piece, and its vectors are written together. Larger inputs belong in files with rows, which are read row by row.
MAX_BYTES = 8 * 2**20


@dataclass(frozen=True)
class Source:
    """A file to read.

    Attributes:
        file: open, positioned at its start.
        path: printable, for messages.
        id: id of its document, or prefix of the ids of its rows.
        suffix: lower case, with the dot.
        text_field: field or column that holds a row's text.
        id_field: field or column that holds a row's id, required in every row; None: "id", optional.
    """

    file: BinaryIO
    path: str
    id: str
    suffix: str
    text_field: str = "text"
    id_field: str | None = None

    def read(self, limit: int = MAX_BYTES) -> bytes:
        """Read the whole file.

        Raises:
            InputError: the file is larger than `limit`, in bytes.
        """
        data = self.file.read(limit + 1)
        if len(data) > limit:
            size = max(os.fstat(self.file.fileno()).st_size, len(data))
            raise InputError(
                f"too large ({size:,} bytes): the limit is {limit // 2**20} MiB per document; "
                "split the file, or make it a .jsonl with one text per line"
            )
        return data

    def text(self, limit: int = MAX_BYTES) -> str:
        """Read the whole file as UTF-8, without the byte order mark.

        Raises:
            InputError: the file is too large, binary, or in another encoding.
        """
        data = self.read(limit)
        if data.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise InputError("UTF-16 (byte order mark), not UTF-8; convert the file first")
        if b"\0" in data:
            raise InputError("binary: the file contains zero bytes")
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(f"not UTF-8 text (byte {error.start}); convert the file first") from error

    def lines(self) -> Iterator[bytes | None]:
        """Yield the lines, without the byte order mark; None in place of a line longer than `MAX_BYTES`."""
        first = True
        while line := self.file.readline(MAX_BYTES + 1):
            if first:
                line, first = line.removeprefix(b"\xef\xbb\xbf"), False
            fits = len(line) <= MAX_BYTES
            while not line.endswith(b"\n") and len(line) > MAX_BYTES:
                line = self.file.readline(MAX_BYTES + 1)
            yield line if fits else None

    def skip(self, reason: str, line: int | None = None) -> SkippedFile:
        """The `SkippedFile` for this file, or for one line of it."""
        return SkippedFile(self.path, reason, line)


# Yields documents as it reads. Raises InputError or MissingExtraError for a problem with the file, and yields a
# SkippedFile for a problem with one row.
Reader = Callable[[Source], Iterator[Document | SkippedFile]]
