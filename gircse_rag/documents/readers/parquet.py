"""Parquet, through pyarrow (extra `parquet`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gircse_rag.documents.document import Document, SkippedFile
from gircse_rag.documents.readers.rows import check_columns, json_fields, row_document
from gircse_rag.documents.readers.source import MAX_BYTES, Source
from gircse_rag.errors import InputError, require

# Rows decoded at once. A value that is compressed to nothing may be 8 MiB in each of them.
_BATCH = 32


def read_parquet(source: Source) -> Iterator[Document | SkippedFile]:
    """A few rows at a time, whatever the row groups' size; a bad row is named by its number, and the rest goes on."""
    pa, pq = require("pyarrow", "parquet"), require("pyarrow.parquet", "parquet")
    try:
        file = pq.ParquetFile(source.file, buffer_size=2**20, pre_buffer=False)
    except Exception as error:  # a damaged footer makes pyarrow raise more than its own
        raise InputError(f"not Parquet that can be read: {_first_line(error)}") from error
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
                        yield _document(batch, row, source, number, pa)
                    except InputError as error:
                        yield source.skipped(f"row {number}: {error}")
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"damaged after row {number}: {_first_line(error)}") from error


def _check_size(group: Any, number: int) -> None:
    """A few kilobytes may stand for a gigabyte, and a page is decoded whole: look at what the file declares first.

    Not column by column: `group.column` of a damaged footer ends the process (pyarrow 26, an uncaught C++ exception).
    """
    if group.num_rows and group.total_byte_size / group.num_rows > MAX_BYTES:
        raise InputError(
            f"row group {number + 1}: {group.total_byte_size:,} bytes in {group.num_rows} rows, and a document has at "
            f"most {MAX_BYTES // 2**20} MiB; it and what follows was not read"
        )


def _document(batch: Any, row: int, source: Source, number: int, pa: Any) -> Document:
    values = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            values[name] = column[row].as_py(maps_as_pydicts="strict")
        except (ValueError, OverflowError, KeyError, pa.ArrowException) as error:  # nanoseconds; a year past 9999
            raise InputError(f"the field {name!r} cannot be read: {_first_line(error)}") from error
    return row_document(json_fields(values), source, number)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
