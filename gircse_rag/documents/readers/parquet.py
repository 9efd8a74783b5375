"""Reads Parquet with pyarrow (extra `parquet`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gircse_rag.documents.document import Document, SkippedFile
from gircse_rag.documents.readers.rows import check_columns, json_fields, row_document
from gircse_rag.documents.readers.source import MAX_BYTES, Source
from gircse_rag.errors import InputError, first_line, require

# Rows decoded at once. Kept small, because a highly compressed value may unpack to 8 MiB in each row.
_BATCH = 32


def read_parquet(source: Source) -> Iterator[Document | SkippedFile]:
    """Read one document per row, a few rows at a time; a bad row is skipped with its number in the reason."""
    pa, pq = require("pyarrow", "parquet"), require("pyarrow.parquet", "parquet")
    try:
        file = pq.ParquetFile(source.file, buffer_size=2**20, pre_buffer=False)
    except Exception as error:  # a damaged footer makes pyarrow raise many types
        raise InputError(f"not readable as Parquet: {first_line(error)}") from error
    check_columns(file.schema_arrow.names, source)
    if not file.metadata.num_rows:
        raise InputError("empty")
    number = 0
    for group in range(file.num_row_groups):
        _check_size(file.metadata.row_group(group), group)
        try:
            for batch in file.iter_batches(_BATCH, row_groups=[group], use_threads=False):
                for row in range(batch.num_rows):
                    number += 1
                    try:
                        yield _make_document(batch, row, source, number, pa)
                    except InputError as error:
                        yield source.skip(f"row {number}: {error}")
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"damaged after row {number}: {first_line(error)}") from error


def _check_size(group: Any, number: int) -> None:
    """Reject a row group whose declared size per row is too large, before a few kilobytes unpack to a gigabyte.

    Does not check columns: with a damaged footer `group.column` kills the process (pyarrow 26, uncaught C++ exception).
    """
    if group.num_rows and group.total_byte_size / group.num_rows > MAX_BYTES:
        raise InputError(
            f"row group {number + 1}: {group.total_byte_size:,} bytes in {group.num_rows} rows, but the limit is "
            f"{MAX_BYTES // 2**20} MiB per document; this group and the rest were not read"
        )


def _make_document(batch: Any, row: int, source: Source, number: int, pa: Any) -> Document:
    values = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            values[name] = column[row].as_py(maps_as_pydicts="strict")
        except (ValueError, OverflowError, KeyError, pa.ArrowException) as error:  # nanoseconds, or a year after 9999
            raise InputError(f"the field {name!r} cannot be read: {first_line(error)}") from error
    return row_document(json_fields(values), source, number)
