"""Reads CSV and tab-separated files with a header, using the standard library.

                  CSV                               TSV
a cell is quoted  if it begins with a quote         if it begins with a quote, and ends with one
a bad quote       ends the file: nobody knows       belongs to the text: lines are rows
                  where the next row begins
"""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterator

from gircse_rag.documents.document import Document, SkippedFile
from gircse_rag.documents.readers.rows import check_columns, row_document
from gircse_rag.documents.readers.source import MAX_BYTES, Source
from gircse_rag.errors import InputError


def read_csv(source: Source) -> Iterator[Document | SkippedFile]:
    """Read one document per row; a bad row is skipped with its line number. All cells are strings."""
    if source.file.read(2) in (b"\xff\xfe", b"\xfe\xff"):
        raise InputError("UTF-16 (byte order mark), not UTF-8; convert the file first")
    source.file.seek(0)
    csv.field_size_limit(max(csv.field_size_limit(), MAX_BYTES))  # process-wide; the default is 128 KiB
    rows = _Rows(source)
    columns = _read_header(rows, source)
    number = 0
    while True:
        line = rows.line + 1
        try:
            row = rows.read(len(columns))
            if row:
                number += 1
                yield _make_document(row, columns, source, number)
        except StopIteration:
            break
        except csv.Error as error:  # in a row without quotes, which therefore ends with its line
            number += 1
            yield source.skip(f"not CSV: {error}", line)
        except InputError as error:
            if rows.failed:
                raise
            until = f" (the row ends in line {rows.line})" if rows.line > line else ""
            yield source.skip(f"{error}{until}", line)
    if not number:
        raise InputError("no rows below the header")


class _Rows:
    """Reads rows of cells. `line` is the number of the last line read, and `failed` is set if reading cannot go on."""

    def __init__(self, source: Source) -> None:
        self.line = 0
        self.failed = False
        self._lines = source.lines()
        self._row: list[bytes | None] = []  # lines of the current row
        self._again: deque[bytes | None] = deque()  # lines to read again
        self._tabs = source.suffix == ".tsv"
        self._reader = csv.reader(self, "excel-tab" if self._tabs else "excel", strict=True)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._lines)
        self.line += 1
        self._row.append(line)
        if line is None:
            self.failed = True
            raise InputError(
                f"line {self.line} is longer than {MAX_BYTES // 2**20} MiB; "
                f"from line {self.line - len(self._row) + 1} on, nothing was read"
            )
        return line.decode("utf-8", "surrogateescape")

    def read(self, width: int | None = None) -> list[str]:
        """Read a row; `width` is the number of columns, None for the header.

        Raises:
            StopIteration: there are no more rows.
            csv.Error: the row is not CSV; the next one can be read.
            InputError: no row can be read any more; `failed` is set.
        """
        self._row.clear()
        try:
            row = next(self._reader)
        except (csv.Error, InputError) as error:
            if self._tabs and width is not None and self._row[0] is not None:
                return self._split_first_line()
            if isinstance(error, csv.Error) and any(b'"' in line for line in self._row if line):
                self.failed = True
                first = self.line - len(self._row) + 1
                raise InputError(
                    f"bad quotes in the row of lines {first} to {self.line} ({error}); from line {first} on, nothing "
                    "was read. Close every quote, and double the quotes inside a cell"
                ) from error
            raise
        if row and self._tabs and width is not None and (len(row) != width or self._are_rows(width)):
            return self._split_first_line()
        return row

    def _are_rows(self, width: int) -> bool:
        """Whether quotes join several lines that are each a full row, so that they belong to the texts of two rows."""
        return len(self._row) > 1 < width and all(line and line.count(b"\t") == width - 1 for line in self._row)

    def _split_first_line(self) -> list[str]:
        first, *rest = self._row
        assert first is not None
        self._again.extendleft(reversed(rest))
        self.line -= len(rest)
        self.failed = False
        return first.decode("utf-8", "surrogateescape").rstrip("\r\n").split("\t")


def _read_header(rows: _Rows, source: Source) -> list[str]:
    try:
        header = rows.read()
    except StopIteration:
        raise InputError("empty") from None
    except csv.Error as error:
        raise InputError(f"the header is not CSV: {error}") from error
    _check_text(header)
    # pandas writes an unnamed first column for the index.
    columns = [name or f"column_{number}" for number, name in enumerate(header, start=1)]
    check_columns(columns, source)
    return columns


def _make_document(row: list[str], columns: list[str], source: Source, number: int) -> Document:
    if len(row) != len(columns):
        raise InputError(f"the row has {len(row)} cells, the header {len(columns)}")
    _check_text(row)
    return row_document(dict(zip(columns, row, strict=True)), source, number)


def _check_text(row: list[str]) -> None:
    joined = "".join(row)
    if "\0" in joined:
        raise InputError("binary: the file contains zero bytes")
    try:
        joined.encode()
    except UnicodeEncodeError as error:
        raise InputError("not UTF-8 text; convert the file first") from error
