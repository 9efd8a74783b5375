"""Reads Parquet with pyarrow (extra `parquet`)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from gircse_rag.documents.document import Document, SkippedFile
from gircse_rag.documents.readers.rows import check_columns, json_fields, row_document
from gircse_rag.documents.readers.source import MAX_BYTES, Source
from gircse_rag.errors import InputError, first_line, require

# Rows decoded at once, if they are small.
_BATCH = 32
# Bytes that the rows decoded at once may take. A dictionary stores a value once and repeats it in every row, so a row
# may be as large as its whole group; larger groups are decoded row by row (25 us instead of 3 us per row, EPYC).
_BATCH_BYTES = 4 * MAX_BYTES
# A larger row group must not unpack to more than this many times the file. Apache POI refuses archives at this ratio.
_MAX_RATIO = 100
# Bytes that a value of a list takes when decoded: a number or an offset, not counting the text of strings.
_VALUE_BYTES = 8


def read_parquet(source: Source) -> Iterator[Document | SkippedFile]:
    """Read one document per row, a few rows at a time; a bad row is skipped with its number in the reason."""
    pa, pq = require("pyarrow", "parquet"), require("pyarrow.parquet", "parquet")
    size = source.file.seek(0, os.SEEK_END)
    source.file.seek(0)
    try:
        file = pq.ParquetFile(source.file, buffer_size=2**20, pre_buffer=False)
        if repeated := _repeated_strings(file.schema):
            options = {"buffer_size": 2**20, "pre_buffer": False, "read_dictionary": repeated}
            file = pq.ParquetFile(source.file, metadata=file.metadata, **options)
    except Exception as error:  # a damaged footer makes pyarrow raise many types
        raise InputError(f"not readable as Parquet: {first_line(error)}") from error
    check_columns(file.schema_arrow.names, source)
    if not file.metadata.num_rows:
        raise InputError("empty")
    number = 0
    for group in range(file.num_row_groups):
        try:
            rows = _rows_at_once(file, group, size)
            for batch in file.iter_batches(rows, row_groups=[group], use_threads=False):
                for row in range(batch.num_rows):
                    number += 1
                    try:
                        yield _make_document(batch, row, source, number, pa)
                    except InputError as error:
                        yield source.skip(f"row {number}: {error}")
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"damaged after row {number}: {first_line(error)}") from error


def _repeated_strings(schema: Any) -> list[str]:
    """The paths of strings inside lists. They are decoded to a dictionary and numbers, whatever the file has.

    In a file, one long string may be repeated without end in a few bytes.
    """
    columns = [schema.column(number) for number in range(len(schema))]
    return [each.path for each in columns if each.physical_type == "BYTE_ARRAY" and each.max_repetition_level]


def _rows_at_once(file: Any, number: int, file_size: int) -> int:
    """How many rows of row group `number` to decode at once, by its declared size.

    Raises:
        InputError: the declared size is too large per row or for the file: a few kilobytes unpack to a gigabyte.
    """
    group = file.metadata.row_group(number)
    size: int = group.total_byte_size
    rows: int = group.num_rows
    if rows and size / rows > MAX_BYTES:
        raise InputError(
            f"row group {number + 1}: {size:,} bytes in {rows} rows, but the limit is "
            f"{MAX_BYTES // 2**20} MiB per document; this group and the rest were not read"
        )
    # Reading no rows raises an error for a damaged footer, where `group.column` kills the process (pyarrow 26).
    for _ in file.reader.iter_batches(0, [number], None, False):
        pass
    # Lists of equal values take no space in the file: run-length encoding.
    counts = [group.column(column).num_values for column in range(group.num_columns)]
    size = max(size, sum(_VALUE_BYTES * count for count in counts if count > rows))
    if size > max(_BATCH_BYTES, _MAX_RATIO * file_size):
        raise InputError(
            f"row group {number + 1} unpacks to {size:,} bytes, more than {_MAX_RATIO} times the file "
            f"({file_size:,} bytes); this group and the rest were not read. Write the file with less compression"
        )
    return min(_BATCH, max(1, _BATCH_BYTES // max(1, size)))


def _make_document(batch: Any, row: int, source: Source, number: int, pa: Any) -> Document:
    values: dict[str, Any] = {}
    _check_row_size(batch, row)
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            values[name] = column[row].as_py(maps_as_pydicts="strict")
        except (ValueError, OverflowError, KeyError, pa.ArrowException) as error:  # nanoseconds, or a year after 9999
            raise InputError(f"the field {name!r} cannot be read: {first_line(error)}") from error
    text = values.pop(source.text_field)  # not converted: a date is not a text
    return row_document({**json_fields(values), source.text_field: text}, source, number)


def _check_row_size(batch: Any, row: int) -> None:
    """Reject a row of more than `MAX_BYTES`, such as an endless list, before it becomes Python objects."""
    if sum(map(_unpacked_bytes, batch.columns)) <= MAX_BYTES:
        return
    if (size := sum(_unpacked_bytes(column.slice(row, 1)) for column in batch.columns)) > MAX_BYTES:
        raise InputError(f"too large ({size:,} bytes): the limit is {MAX_BYTES // 2**20} MiB per document")


def _unpacked_bytes(array: Any) -> int:
    """Bytes of an Arrow array's values, each value of a dictionary counted as often as it is used."""
    compute, types = require("pyarrow.compute", "parquet"), require("pyarrow.types", "parquet")
    kind = array.type
    if types.is_dictionary(kind):
        if types.is_string(kind.value_type) or types.is_binary(kind.value_type):
            lengths = compute.binary_length(array.dictionary).take(array.indices)
            return int(compute.sum(lengths).as_py() or 0)
        return int(array.indices.nbytes)  # numbers
    if types.is_map(kind):
        start, end = array.offsets[0].as_py(), array.offsets[-1].as_py()
        return sum(_unpacked_bytes(part.slice(start, end - start)) for part in (array.keys, array.items))
    if types.is_nested(kind):
        return sum(map(_unpacked_bytes, array.flatten() if types.is_struct(kind) else [array.flatten()]))
    return int(array.nbytes)
