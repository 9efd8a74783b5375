"""A row of a .jsonl, .csv or .parquet as a document, and values as JSON."""

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

# A float holds this many decimal digits exactly.
_FLOAT_DIGITS = 15


def row_document(row: Mapping[str, Any], source: Source, number: int) -> Document:
    """The document of a row: `text_field` is its text, `id_field` names it, everything else is metadata.

    Its id is "file#name"; without a name, "file:number". The field `metadata`, if it is an object, is spread out.

    Raises:
        InputError: there is no text, or the name is neither a string nor an integer.
    """
    row = dict(row)
    text = row.pop(source.text_field, None)
    id_field = source.id_field or "id"
    name = row.pop(id_field, None)
    metadata = row.pop("metadata") if isinstance(row.get("metadata"), Mapping) else {}
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"the field {source.text_field!r} is missing, empty or not a string")
    if len(text) > MAX_BYTES:
        raise InputError(f"too large ({len(text):,} characters): a document has at most {MAX_BYTES // 2**20} MiB")
    if isinstance(name, bool) or not isinstance(name, str | int | None):
        raise InputError(f"the field {id_field!r} is a {type(name).__name__}, not a string or an integer")
    if name is None and source.id_field is not None:
        raise InputError(f"the field {id_field!r}, which is to name it, is missing")
    own_id = f"{source.id}:{number}" if name is None else f"{source.id}#{name}"
    return Document(own_id, text, {**row, **metadata})


def check_columns(columns: Collection[str], source: Source) -> None:
    """
    Raises:
        InputError: a table without the column that a document's text, or its name, is to come from.
    """
    for needed, option in ((source.text_field, "text_field"), (source.id_field, "id_field")):
        if needed is not None and needed not in columns:
            shown = ", ".join(list(columns)[:20])
            raise InputError(f"it has no column {needed!r}; {option} names another of its columns: {shown}")


def json_value(value: object, depth: int = 1) -> Any:
    """The value as JSON holds it, `depth` levels below, where that has an obvious form; nothing is rounded.

    Dates and times become ISO 8601; a decimal a number, or a string if a float would round it; a UUID or a path a
    string; NaN null, as tables mean it: no value; NumPy's scalars and arrays their values.

    Raises:
        InputError: there is no obvious form: bytes, durations, infinities, objects.
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
    raise InputError(f"JSON has no form for a {type(value).__name__}{shown}")


def json_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """
    Raises:
        InputError: naming the field that JSON cannot hold.
    """
    done = {}
    for name, value in fields.items():
        try:
            done[name] = json_value(value)
        except InputError as error:
            raise InputError(f"the field {name!r} cannot be metadata: {error}; leave it out or make it text") from error
    return done
