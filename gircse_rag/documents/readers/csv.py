"""Reads CSV and tab-separated files with a header, using the standard library."""

from __future__ import annotations

import csv
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
    dialect = "excel-tab" if source.suffix == ".tsv" else "excel"
    rows = csv.reader(_decode_lines(source), dialect, strict=True)
    columns = _read_header(rows, source)
    number = 0
    while True:
        line = rows.line_num + 1
        try:
            row = next(rows)
        except StopIteration:
            break
        except csv.Error as error:
            yield source.skip(f"not CSV: {error}", line)
            number += 1
            continue
        if row:
            number += 1
            try:
                yield _make_document(row, columns, source, number)
            except InputError as error:
                yield source.skip(str(error), line)
    if not number:
        raise InputError("no rows below the header")


def _decode_lines(source: Source) -> Iterator[str]:
    for number, line in enumerate(source.lines(), start=1):
        if line is None:
            raise InputError(f"line {number} is longer than {MAX_BYTES // 2**20} MiB; it and the rest were not read")
        yield line.decode("utf-8", "surrogateescape")


def _read_header(rows: Iterator[list[str]], source: Source) -> list[str]:
    try:
        header = next(rows)
    except StopIteration:
        raise InputError("empty") from None
    except csv.Error as error:
        raise InputError(f"the header is not CSV: {error}") from error
    _check_text(header)
    # pandas writes an unnamed first column for the index.
    columns = [name or f"column_{number}" for number, name in enumerate(header, start=1)]
    if duplicates := [name for name in columns if columns.count(name) > 1]:
        raise InputError(f"the header has the column {duplicates[0]!r} twice; rename one")
    check_columns(columns, source)
    return columns


def _make_document(row: list[str], columns: list[str], source: Source, number: int) -> Document:
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
        raise InputError("binary: the file contains zero bytes")
    try:
        joined.encode()
    except UnicodeEncodeError as error:
        raise InputError("not UTF-8 text; convert the file first") from error
