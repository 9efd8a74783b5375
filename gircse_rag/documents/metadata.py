"""Which metadata a document may have: JSON values, nested to a limited depth, integers of at most 64 bits."""

from __future__ import annotations

import json
from collections.abc import Mapping

from gircse_rag.errors import InputError

MAX_DEPTH = 64
"""Levels of objects and lists, counting the metadata itself. The embedded store pickles payloads, which recurses, and
Python limits recursion."""


def fits_store(value: int) -> bool:
    """Whether every store keeps the integer exactly: signed 64 bits. The edge store rounds larger ones to floats."""
    return -(2**63) <= value < 2**63


def json_text(metadata: object) -> str:
    """Metadata as JSON text, keys sorted.

    Raises:
        InputError: the metadata is not a mapping, has a key that is not a string, contains values without a JSON form
            (NaN, infinity, lone surrogates, dates, bytes, objects), contains integers beyond 64 bits, or is nested more
            than `MAX_DEPTH` levels deep.
    """
    if not isinstance(metadata, Mapping):
        raise InputError(f"its metadata is a {type(metadata).__name__}, not a mapping")
    _check(metadata, 1, None)
    try:
        text = json.dumps(dict(metadata), allow_nan=False, ensure_ascii=False, sort_keys=True)
        text.encode()
    except (TypeError, ValueError) as error:
        raise InputError(
            f"its metadata is not JSON: {error}; use strings, finite numbers, booleans, None, lists and mappings"
        ) from error
    return text


def _check(value: object, depth: int, name: str | None) -> None:
    """Check the depth, the types of keys and the sizes of integers in the field `name`.

    Goes depth first, so a self-referencing value reaches the depth limit.
    """
    if isinstance(value, int) and not fits_store(value):
        raise InputError(f"its metadata field {name!r} has an integer beyond 64 bits; make it a string")
    if not isinstance(value, Mapping | list | tuple):
        return
    if depth > MAX_DEPTH:
        raise InputError(f"its metadata is nested more than {MAX_DEPTH} levels deep; flatten it")
    if isinstance(value, Mapping) and (bad := [key for key in value if not isinstance(key, str)]):
        raise InputError(f"its metadata has the key {bad[0]!r}, not a string")
    for key, inner in value.items() if isinstance(value, Mapping) else ((name, item) for item in value):
        _check(inner, depth + 1, key)
