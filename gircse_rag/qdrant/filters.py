"""Converts plain filters, {"kind": "animal", "year": {"gte": 1990}, "lang": ["de", "en"]}, to Qdrant filters."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from datetime import datetime
from numbers import Integral
from typing import Any

from pydantic import ValidationError
from qdrant_client import models

from gircse_rag.documents.metadata import fits_store
from gircse_rag.errors import InputError

Filter = models.Filter | Mapping[str, Any]

_BOUNDS = frozenset({"gt", "gte", "lt", "lte"})
_EXACT_BELOW = 2**53
"""Qdrant compares ranges as floats. From here on, different integers may be the same float."""
# One part of a key: a name, quoted or bare, and list indices. Qdrant has no escapes, so " and \ are not allowed.
_PART = re.compile(
    r'(?:"([^"\\\ud800-\udfff]*)"|([^".\\\ud800-\udfff]+?))((?:\[[0-9]{0,18}\])*)(?:\.(?=.)|\Z)', re.DOTALL
)
_BARE = re.compile(r"[A-Za-z0-9_-]+")


def as_filter(query_filter: Filter | None) -> models.Filter | None:
    """Convert `query_filter` to a Qdrant filter.

    A mapping gives metadata keys (see `field_path`) and values; all must match. A string, number or boolean matches
    exactly, a list matches any of its items, and a mapping with "gt", "gte", "lt" or "lte" is a range of numbers or ISO
    8601 dates. Integers in a range must be below 2**53, because Qdrant compares ranges as floats. A `models.Filter`
    (should, must_not, geo, other payload keys) is returned unchanged.

    Raises:
        InputError: another type, or a value that cannot be compared; names the key.
    """
    if query_filter is None or isinstance(query_filter, models.Filter):
        return query_filter
    if not isinstance(query_filter, Mapping):
        raise InputError(f"query_filter must be a mapping or a qdrant_client models.Filter, not {query_filter!r}")
    return models.Filter(must=[_condition(key, value) for key, value in query_filter.items()])


def field_path(key: str) -> str:
    """Qdrant's path to a metadata key: `Release Date` becomes `metadata."Release Date"`.

    A dot reaches inside an object, `tags[0]` is one item of a list and `tags[]` any item. A name in double quotes is
    taken literally: `"No. of pages"`.

    Raises:
        InputError: the key is empty or not a string, or Qdrant cannot express its path.
    """
    if not isinstance(key, str) or not key:
        raise InputError(f"a filter has the key {key!r}; give the name of a metadata field")
    path, end = "metadata", 0
    while end < len(key):
        part = _PART.match(key, end)
        # White space beside a dot means the dot probably belongs to the name; the filter would silently match nothing.
        if part is None or ("." in key and part[2] and part[2] != part[2].strip()):
            raise InputError(
                f"a filter has the key {key!r}: dots reach inside an object, so put a name that contains dots in "
                'double quotes ("No. of pages"); no filter reaches a name with a double quote, \\ or a lone surrogate'
            )
        quoted, bare, items = part.groups()
        name = bare if bare and _BARE.fullmatch(bare) else f'"{bare or quoted}"'
        path, end = f"{path}.{name}{items}", part.end()
    return path


def _condition(key: str, value: object) -> models.FieldCondition | models.Filter:
    field = field_path(key)
    try:
        if isinstance(value, Mapping):
            return models.FieldCondition(key=field, range=_range(key, value))
        if isinstance(value, list | tuple | set | frozenset):
            return _any_of(key, value)
        _check_number(key, value)
        if isinstance(value, float):  # Qdrant matches no floats
            return models.FieldCondition(key=field, range=models.Range(gte=value, lte=value))
        return models.FieldCondition(key=field, match=models.MatchValue(value=value))  # type: ignore[arg-type]
    except ValidationError as error:
        raise InputError(
            f"query_filter {key!r}: {value!r} cannot be compared; give a string, a number, a boolean, a list of these, "
            'or a range such as {"gte": 1990}'
        ) from error


def _range(key: str, bounds: Mapping[str, Any]) -> models.Range | models.DatetimeRange:
    if not bounds or not set(bounds) <= _BOUNDS:
        raise InputError(f"query_filter {key!r}: {dict(bounds)!r} is no range; use {', '.join(sorted(_BOUNDS))}")
    if any(isinstance(bound, str) for bound in bounds.values()):
        if not all(bound is None or _is_date(bound) for bound in bounds.values()):
            raise InputError(
                f"query_filter {key!r}: {dict(bounds)!r} is a range neither of numbers nor of dates; give numbers "
                'without quotes (1990), or whole ISO dates ("1990-01-01")'
            )
        return models.DatetimeRange(**bounds)
    for bound in bounds.values():
        _check_number(key, bound)
        if isinstance(bound, Integral) and abs(int(bound)) >= _EXACT_BELOW:
            raise InputError(
                f"query_filter {key!r}: Qdrant compares ranges as floats, which cannot hold every integer as large as "
                f"{bound!r}; give an integer below 2**53, or a float (1e18) if rounding does no harm"
            )
    return models.Range(**bounds)


def _any_of(key: str, values: Collection[object]) -> models.FieldCondition | models.Filter:
    """A condition that any of the values meets: one for all strings, one for all integers, one for each other value."""
    if not values:
        raise InputError(f"query_filter {key!r}: the list is empty, so nothing could match")
    for value in values:
        if not isinstance(value, str | int | float):
            raise InputError(f"query_filter {key!r}: {value!r} is in a list; only strings, numbers and booleans may be")
        _check_number(key, value)
    strings = [value for value in values if isinstance(value, str)]
    integers = [value for value in values if isinstance(value, int) and not isinstance(value, bool)]
    conditions: list[Any] = [
        models.FieldCondition(key=field_path(key), match=models.MatchAny(any=group))
        for group in (strings, integers)
        if group
    ]
    conditions += [_condition(key, value) for value in values if isinstance(value, bool | float)]
    return conditions[0] if len(conditions) == 1 else models.Filter(should=conditions)


def _check_number(key: str, value: object) -> None:
    """Refuse numbers that are not JSON, or that Qdrant cannot hold."""
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"query_filter {key!r}: {value!r} is not a JSON number; give a finite one, or leave it out")
    if isinstance(value, int) and not fits_store(value):
        raise InputError(
            f"query_filter {key!r}: {value!r} does not fit into 64 bits; if the field holds text, give a string"
        )


def _is_date(bound: object) -> bool:
    """Whether `bound` is an ISO date. Digits alone do not count: pydantic reads them as seconds since 1970."""
    try:
        return isinstance(bound, str) and not bound.isdigit() and bool(datetime.fromisoformat(bound.upper()))
    except ValueError:
        return False
