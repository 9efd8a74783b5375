"""Turns a row of a .jsonl, .csv or .parquet file into a document, and its values into JSON."""

from __future__ import annotations

import datetime
import math
import os
import uuid
from collections.abc import Collection, Mapping
from decimal import Decimal
from typing import Any

import numpy as np

from gircse_rag.documents.document import Document
from gircse_rag.documents.metadata import MAX_DEPTH
from gircse_rag.documents.readers.source import MAX_BYTES, Source
from gircse_rag.errors import InputError

# A float represents this many decimal digits exactly.
_FLOAT_DIGITS = 15


def row_document(row: Mapping[str, Any], source: Source, number: int) -> Document:
    """Make a document from a row: text from `text_field`, id from `id_field`, the other fields as metadata.

    The document's id is "file#id", or "file:number" for a row without an id. If the field `metadata` is an object, its
    keys are merged into the metadata.

    Raises:
        InputError: there is no text, or the id is neither a string nor an integer.
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
    if isinstance(name, bool) or not isinstance(name, str | int | None):
        raise InputError(f"the field {id_field!r} is a {type(name).__name__}, not a string or an integer")
    if name is None and source.id_field is not None:
        raise InputError(f"the id field {id_field!r} is missing")
    own_id = f"{source.id}:{number}" if name is None else f"{source.id}#{name}"
    return Document(own_id, text, {**row, **metadata})


def check_columns(columns: Collection[str], source: Source) -> None:
    """Raise InputError if a table lacks the column for the text or for the id."""
    for needed, option in ((source.text_field, "text_field"), (source.id_field, "id_field")):
        if needed is not None and needed not in columns:
            shown = ", ".join(list(columns)[:20])
            raise InputError(f"there is no column {needed!r}; set {option} to one of the columns: {shown}")


def json_value(value: object, depth: int = 1) -> Any:
    """Convert a value to JSON types without rounding. `depth` is its level in the metadata.

    Dates and times become ISO 8601 strings. A decimal becomes a number, or a string if a float would round it. UUIDs
    and paths become strings. NaN becomes null, because tables use it for "no value". NumPy scalars and arrays become
    numbers and lists.

    Raises:
        InputError: the value has no obvious JSON form: bytes, durations, infinities, other objects.
    """
    match value:
        case np.generic() | np.ndarray():
            return json_value(value.tolist(), depth)
        case None | bool() | int() | str():
            return value
        case float() if not math.isinf(value):
            return None if math.isnan(value) else value
        case datetime.date() | datetime.time():
            return value.isoformat()
        case Decimal() if value.is_finite():
            return float(value) if len(value.as_tuple().digits) <= _FLOAT_DIGITS else str(value)
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


def json_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Convert each field with `json_value`; an InputError names the field."""
    converted = {}
    for name, value in fields.items():
        try:
            converted[name] = json_value(value)
        except InputError as error:
            raise InputError(f"the field {name!r} cannot be metadata: {error}; remove it or make it text") from error
    return converted
