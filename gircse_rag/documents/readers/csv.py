"""CSV and tab-separated values with a header, through the standard library."""

from __future__ import annotations

import csv
from collections.abc import Iterator

from gircse_rag.documents.document import Document, SkippedFile
from gircse_rag.documents.readers.rows import check_columns, row_document
from gircse_rag.documents.readers.source import MAX_BYTES, Source
from gircse_rag.errors import InputError


def read_csv(source: Source) -> Iterator[Document | SkippedFile]:
    """Row by row; a bad row is named by its line, and the rest goes on. Cells are strings: CSV has no other values."""
    if source.file.read(2) in (b"\xff\xfe", b"\xfe\xff"):
        raise InputError("UTF-16, by its byte order mark, not UTF-8; convert it first")
    source.file.seek(0)
    csv.field_size_limit(max(csv.field_size_limit(), MAX_BYTES))  # the process's; a text may be longer than 128 KiB
    dialect = "excel-tab" if source.suffix == ".tsv" else "excel"
    rows = csv.reader(_decoded(source), dialect, strict=True)
    columns = _header(rows, source)
    number = 0
    while True:
        line = rows.line_num + 1
        try:
            row = next(rows)
        except StopIteration:
            break
        except csv.Error as error:
            yield source.skipped(f"not CSV: {error}", line)
            number += 1
            continue
        if row:
            number += 1
            try:
                yield _document(row, columns, source, number)
            except InputError as error:
                yield source.skipped(str(error), line)
    if not number:
        raise InputError("no rows below the header")


def _decoded(source: Source) -> Iterator[str]:
    for number, line in enumerate(source.lines(), start=1):
        if line is None:
            raise InputError(f"line {number} is longer than {MAX_BYTES // 2**20} MiB; it and what follows was not read")
        yield line.decode("utf-8", "surrogateescape")


def _header(rows: Iterator[list[str]], source: Source) -> list[str]:
    try:
        header = next(rows)
    except StopIteration:
        raise InputError("empty") from None
    except csv.Error as error:
        raise InputError(f"its header is not CSV: {error}") from error
    _check_text(header)
    # A table that pandas wrote with its index has no name for the first column.
    columns = [name or f"column_{number}" for number, name in enumerate(header, start=1)]
    if twice := [name for name in columns if columns.count(name) > 1]:
        raise InputError(f"its header has {twice[0]!r} twice")
    check_columns(columns, source)
    return columns


def _document(row: list[str], columns: list[str], source: Source, number: int) -> Document:
    if len(row) != len(columns):
        raise InputError(f"the row has {len(row)} cells, the header {len(columns)}")
    _check_text(row)
    values: dict[str, str | None] = dict(zip(columns, row, strict=True))
    name = source.id_field or "id"
    values[name] = values.get(name) or None
    return row_document(values, source, number)


def _check_text(row: list[str]) -> None:
    joined = "".join(row)
    if "\0" in joined:
        raise InputError("binary: it holds zero bytes")
    try:
        joined.encode()
    except UnicodeEncodeError as error:
        raise InputError("not UTF-8 text; convert the file first") from error
