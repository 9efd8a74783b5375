"""What a document's metadata may hold: what JSON knows, and not nested without end."""

from __future__ import annotations

import json
from collections.abc import Mapping

from gircse_rag.errors import InputError

MAX_DEPTH = 64
"""Levels of objects and lists, the metadata itself the first: the embedded store pickles payloads, and Python's
recursion is bounded."""


def json_text(metadata: object) -> str:
    """Metadata as JSON, keys in order.

    Raises:
        InputError: it is no mapping, has a key that is no string at any level, holds what JSON does not know (NaN and
            infinity, lone surrogates, dates, bytes, objects), or is nested more than `MAX_DEPTH` levels deep.
    """
    if not isinstance(metadata, Mapping):
        raise InputError(f"its metadata is a {type(metadata).__name__}, not a mapping")
    _check(metadata, 1)
    try:
        text = json.dumps(dict(metadata), allow_nan=False, ensure_ascii=False, sort_keys=True)
        text.encode()
    except (TypeError, ValueError) as error:
        raise InputError(
            f"its metadata is not JSON: {error}; use strings, finite numbers, booleans, None, lists and mappings"
        ) from error
    return text


def _check(value: object, depth: int) -> None:
    """Depth first, so that what holds itself comes to an end."""
    if not isinstance(value, Mapping | list | tuple):
        return
    if depth > MAX_DEPTH:
        raise InputError(f"its metadata is nested more than {MAX_DEPTH} levels deep; flatten it")
    if isinstance(value, Mapping) and (bad := [key for key in value if not isinstance(key, str)]):
        raise InputError(f"its metadata has the key {bad[0]!r}, not a string")
    for inner in value.values() if isinstance(value, Mapping) else value:
        _check(inner, depth + 1)
