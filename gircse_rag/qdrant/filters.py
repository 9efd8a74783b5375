"""Converts plain filters, {"kind": "animal", "year": {"gte": 1990}, "lang": ["de", "en"]}, to Qdrant filters."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from numbers import Integral
from typing import Any

from pydantic import ValidationError
from qdrant_client import models

from gircse_rag.documents.metadata import fits_store
from gircse_rag.errors import InputError

Filter = models.Filter | Mapping[str, Any]

_BOUNDS = ("gt", "gte", "lt", "lte")
_OPERATORS = frozenset({*_BOUNDS, "ne", "exists"})
_EXACT_BELOW = 2**53
"""Qdrant compares ranges as floats. From here on, different integers may be the same float."""
# One part of a key: a name, quoted or bare, and list indices. Qdrant has no escapes, so " and \ are not allowed.
_PART = re.compile(
    r'(?:"([^"\\\ud800-\udfff]*)"|([^".\\\ud800-\udfff]+?))((?:\[[0-9]{0,18}\])*)(?:\.(?=.)|\Z)', re.DOTALL
)
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,399})(?:\.[0-9]{1,399})?(?:[eE][+-]?[0-9]{1,3})?")
_TRUTH = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INDEXED = {"keyword": str, "uuid": str, "integer": int, "float": float, "bool": bool}
"""Kind of a payload index -> type of the values that it finds."""


def as_filter(
    query_filter: Filter | None, schema: Mapping[str, models.PayloadIndexInfo] | None = None
) -> models.Filter | None:
    """Convert `query_filter` to a Qdrant filter.

    A mapping gives metadata keys (see `field_path`) and conditions; all must hold:

        "faq", 7, 1.5, True      equal
        None                     no value: the key is missing, null or an empty list
        ["de", "en", None]       any of these
        {"gte": 1990, ...}       "gt", "gte", "lt", "lte": a range of numbers or of ISO 8601 dates;
                                 "ne": not this value, nor any of this list; also holds where the key is missing;
                                 "exists": True or False: whether there is a value

    Integers in a range must be below 2**53, because Qdrant compares ranges as floats. A `models.Filter` (should,
    must_not, geo, other payload keys) is returned unchanged.

    Args:
        schema: the collection's payload schema. If given, as in `search`, types do not matter: 2020, 2020.0 and "2020"
            are equal, and so are True and "true", because readers of tables disagree about them. A field with a payload
            index is only compared with values of the type that its index finds. If None, types matter.

    Raises:
        InputError: another type, or a value that cannot be compared; names the key.
    """
    if query_filter is None or isinstance(query_filter, models.Filter):
        return query_filter
    if not isinstance(query_filter, Mapping):
        raise InputError(f"query_filter must be a mapping or a qdrant_client models.Filter, not {query_filter!r}")
    return models.Filter(must=[_condition(key, value, schema) for key, value in query_filter.items()])


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


def _condition(key: str, value: object, schema: Mapping[str, models.PayloadIndexInfo] | None) -> Any:
    try:
        if isinstance(value, Mapping):
            return _compare(key, value, schema)
        return _any_of(key, value if isinstance(value, list | tuple | set | frozenset) else [value], schema)
    except ValidationError as error:
        raise InputError(f"query_filter {key!r}: {value!r} cannot be compared") from error


def _compare(key: str, value: Mapping[str, Any], schema: Mapping[str, models.PayloadIndexInfo] | None) -> Any:
    """A condition that all operators of the mapping meet."""
    if not value or not set(value) <= _OPERATORS:
        raise InputError(f"query_filter {key!r}: {dict(value)!r} is no range; use {', '.join(sorted(_OPERATORS))}")
    must: list[Any] = []
    must_not: list[Any] = []
    if bounds := {name: bound for name, bound in value.items() if name in _BOUNDS}:
        must.append(models.FieldCondition(key=field_path(key), range=_range(key, bounds)))
    if "ne" in value:
        if isinstance(value["ne"], Mapping):
            raise InputError(f"query_filter {key!r}: 'ne' takes a value or a list, not {value['ne']!r}")
        must_not.append(_condition(key, value["ne"], schema))
    if "exists" in value:
        if not isinstance(value["exists"], bool):
            raise InputError(f"query_filter {key!r}: 'exists' is True or False, not {value['exists']!r}")
        (must_not if value["exists"] else must).append(is_empty(key))
    return must[0] if len(must) == 1 and not must_not else models.Filter(must=must or None, must_not=must_not or None)


def is_empty(key: str) -> models.IsEmptyCondition:
    """The condition that a metadata key is missing, null or an empty list."""
    return models.IsEmptyCondition(is_empty=models.PayloadField(key=field_path(key)))


def _range(key: str, bounds: Mapping[str, Any]) -> models.Range | models.DatetimeRange:
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


def _any_of(
    key: str, values: Collection[object], schema: Mapping[str, models.PayloadIndexInfo] | None
) -> models.FieldCondition | models.IsEmptyCondition | models.Filter:
    """A condition that any of the values meets: one for all strings, one for all integers, one for each other value."""
    if not values:
        raise InputError(f"query_filter {key!r}: the list is empty, so nothing could match")
    for value in values:
        if not isinstance(value, str | int | float | None):
            raise InputError(
                f"query_filter {key!r}: {value!r} cannot be compared; give a string, a number, a boolean, None, a list "
                'of these, or a range such as {"gte": 1990}'
            )
        _check_number(key, value)
    field = field_path(key)
    if schema is not None:
        index = schema.get(field)
        kind = None if index is None else index.data_type.value
        values = [each for value in values for each in _in_every_type(value, kind)]
    strings = list(dict.fromkeys(value for value in values if isinstance(value, str)))
    integers = [value for value in values if isinstance(value, int) and not isinstance(value, bool)]
    conditions: list[Any] = [_match(field, group) for group in (strings, list(dict.fromkeys(integers))) if group]
    for flag in dict.fromkeys(value for value in values if isinstance(value, bool)):
        conditions.append(_match(field, [flag]))
    for number in dict.fromkeys(value for value in values if isinstance(value, float)):  # Qdrant matches no floats
        conditions.append(models.FieldCondition(key=field, range=models.Range(gte=number, lte=number)))
    if None in values:
        conditions.append(is_empty(key))
    return conditions[0] if len(conditions) == 1 else models.Filter(should=conditions)


def _match(field: str, values: list[Any]) -> models.FieldCondition:
    match = models.MatchValue(value=values[0]) if len(values) == 1 else models.MatchAny(any=values)
    return models.FieldCondition(key=field, match=match)


def _in_every_type(value: Any, kind: str | None) -> Iterable[Any]:
    """The value in each type in which a document may have it; only in the type of an index of this kind."""
    equal = [value, *_other_types(value)]
    if kind is not None:
        found = [each for each in equal if type(each) is _INDEXED.get(kind)]
        return found or [value]
    exact = any(isinstance(each, float) for each in equal)  # a range matches floats and integers
    return [each for each in equal if not exact or isinstance(each, str | float)]


def _other_types(value: Any) -> Iterable[Any]:
    if isinstance(value, bool):
        return [name for name, truth in _TRUTH.items() if truth is value]
    if isinstance(value, str):
        if value in _TRUTH:
            return [_TRUTH[value]]
        number = json.loads(value) if _NUMBER.fullmatch(value) else None
        whole = isinstance(number, int)
        if number is None or not (fits_store(number) if whole else math.isfinite(number)):
            return []
        return [number, *(each for each in _other_types(number) if not isinstance(each, str))]
    if isinstance(value, int):
        return [*([float(value)] if abs(value) < _EXACT_BELOW else []), str(value)]
    if isinstance(value, float):
        whole = value.is_integer() and abs(value) < _EXACT_BELOW
        return [*([int(value), str(int(value))] if whole else []), repr(value)]
    return []


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
