"""Turns a row of a .jsonl, .csv or .parquet file into a document, and its values into JSON."""

from __future__ import annotations

import datetime
import math
import os
import sys
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

import numpy as np

from gircse_rag.documents.document import Document
from gircse_rag.documents.metadata import MAX_DEPTH, fits_store
from gircse_rag.documents.readers.source import MAX_BYTES, Source
from gircse_rag.errors import InputError

# A float represents this many decimal digits exactly.
_FLOAT_DIGITS = 15


def row_document(row: Mapping[str, Any], source: Source, number: int) -> Document:
    """Make a document from a row: text from `text_field`, id from `id_field`, the other fields as metadata.

    The document's id is "file#id", or "file:number" for a row without an id. If the field `metadata` is an object, its
    keys are merged into the metadata.

    Raises:
        InputError: there is no text, the id is neither a string nor an integer, or a field is also in `metadata` with
            another value.
    """
    row = dict(row)
    text = row.pop(source.text_field, None)
    id_field = source.id_field or "id"
    name = row.pop(id_field, None)
    metadata = row.pop("metadata") if isinstance(row.get("metadata"), Mapping) else {}
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"the field {source.text_field!r} is missing, empty or not a string")
    if len(text) > MAX_BYTES:
        raise InputError(f"too large ({len(text):,} characters): the limit is {MAX_BYTES // 2**20} MiB per document")
    if isinstance(name, float) and name.is_integer() and abs(name) <= 2**53:
        name = int(name)  # pandas stores integers as floats if a row has none
    if isinstance(name, bool) or not isinstance(name, str | int | None):
        raise InputError(f"the field {id_field!r} is a {type(name).__name__}, not a string or an integer")
    if isinstance(name, str) and not name.strip():
        name = None
    if name is None and source.id_field is not None:
        raise InputError(f"the id field {id_field!r} is missing or empty")
    if clashes := [key for key in metadata if key in row and row[key] != metadata[key]]:
        raise InputError(f"the field {clashes[0]!r} is also in 'metadata', with another value; rename one")
    own_id = f"{source.id}:{number}" if name is None else f"{source.id}#{name}"
    return Document(own_id, text, {**row, **metadata})


def first_duplicate(names: Iterable[str]) -> str | None:
    """The first name that occurs more than once, or None. Linear, because a hostile file has millions of names."""
    return next((name for name, count in Counter(names).items() if count > 1), None)


def check_columns(columns: Sequence[str], source: Source) -> None:
    """Raise InputError if a table has two columns of one name, or lacks the column for the text or for the id."""
    if (name := first_duplicate(columns)) is not None:
        raise InputError(f"two columns have the name {name!r}; rename one")
    for needed, option in ((source.text_field, "text_field"), (source.id_field, "id_field")):
        if needed is not None and needed not in columns:
            shown = ", ".join(columns[:20])
            raise InputError(f"there is no column {needed!r}; set {option} to one of the columns: {shown}")


def json_value(value: object, depth: int = 1) -> Any:
    """Convert a value to JSON types without rounding. `depth` is its level in the metadata.

    Dates and times become ISO 8601 strings. A decimal becomes a number, or a string if a number would round it; an
    integer beyond 64 bits becomes a string. UUIDs and paths become strings. NaN, and NaT and NA of pandas, become null,
    because tables use them for "no value". NumPy scalars and arrays become numbers and lists.

    Raises:
        InputError: the value has no obvious JSON form: bytes, durations, infinities, other objects.
    """
    match value:
        case np.datetime64() | np.timedelta64() if np.isnat(value):
            return None
        case np.datetime64():
            return _iso_time(value)
        case np.ndarray() if value.dtype.kind in "mM":  # tolist() turns nanoseconds into bare integers
            return json_value(list(value) if value.ndim else value[()], depth)
        case np.generic() | np.ndarray() if value.dtype.char not in "mgG":  # "gG": long doubles stay what they are
            return json_value(value.tolist(), depth)
        case None | bool() | str():
            return value
        case int():
            return value if fits_store(value) else str(value)
        case _ if _is_missing(value):
            return None
        case float() if not math.isinf(value):
            return None if math.isnan(value) else value
        case datetime.date() | datetime.time():
            return value.isoformat()
        case Decimal() if value.is_qnan():
            return None
        case Decimal() if value.is_finite():
            return _decimal_number(value)
        case uuid.UUID() | os.PathLike():
            return str(value)
        case Mapping() if depth < MAX_DEPTH:
            if bad := [key for key in value if not isinstance(key, str)]:
                raise InputError(f"the key {bad[0]!r} is not a string")
            return {key: json_value(inner, depth + 1) for key, inner in value.items()}
        case list() | tuple() if depth < MAX_DEPTH:
            return [json_value(inner, depth + 1) for inner in value]
    if depth == MAX_DEPTH:
        raise InputError(f"a value is nested more than {MAX_DEPTH} levels deep")
    shown = f" ({value})" if isinstance(value, float | Decimal) else ""
    raise InputError(f"JSON has no type for {type(value).__name__}{shown}")


def _is_missing(value: object) -> bool:
    """Whether the value is pandas' NaT or NA. A program that has such values has imported pandas."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and (value is pandas.NaT or value is pandas.NA)


def _iso_time(value: np.datetime64) -> str:
    """ISO 8601, like `datetime.isoformat`; NumPy's own form for nanoseconds and for years after 9999."""
    if np.datetime_data(value.dtype)[0] in ("ns", "ps", "fs", "as"):
        microseconds = value.astype("M8[us]")
        value = microseconds if microseconds == value else value
    time = value.item()
    return time.isoformat() if isinstance(time, datetime.date) else str(value)


def _decimal_number(value: Decimal) -> int | float | str:
    """An integer if the decimal has no places, as databases store integers; else a float, or text if it would round."""
    _, digits, exponent = value.as_tuple()
    if exponent == 0:
        return int(value) if fits_store(int(value)) else str(value)
    number = float(value)
    exact = len(digits) <= _FLOAT_DIGITS and Decimal(repr(number)) == value
    return number if exact else str(value)


def json_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Convert each field with `json_value`; an InputError names the field."""
    converted = {}
    for name, value in fields.items():
        try:
            converted[name] = json_value(value)
        except ValueError as error:  # InputError, or an integer of thousands of digits
            raise InputError(f"the field {name!r} cannot be metadata: {error}; remove it or make it text") from error
    return converted
