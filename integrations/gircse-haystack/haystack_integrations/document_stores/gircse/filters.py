"""Convert Haystack's filters to Qdrant filters on the payload of gircse-rag's points."""

from __future__ import annotations

from typing import Any, cast

from gircse_rag.errors import InputError
from gircse_rag.qdrant.filters import as_filter, field_path
from haystack.errors import FilterError
from haystack_integrations.document_stores.qdrant.filters import convert_filters_to_qdrant
from pydantic import ValidationError
from qdrant_client import models

_BOUNDS = {">": "gt", ">=": "gte", "<": "lt", "<=": "lte"}
_FIELDS = {"content": "page_content", "id": "own_id"}


def to_qdrant(filters: dict[str, Any] | None) -> models.Filter | None:
    """Convert Haystack filters to a Qdrant filter; None stays None.

    :raises FilterError: the filter is invalid.
    """
    try:
        return cast("models.Filter | None", convert_filters_to_qdrant(_convert_condition(filters) if filters else None))
    except InputError as error:
        raise FilterError(str(error)) from error
    except ValidationError as error:
        raise FilterError(
            f"{filters!r} has a value that Qdrant cannot compare with this operator: use a string, an integer or a "
            "boolean; floats only with ==, in, >, >=, < and <="
        ) from error


def _convert_condition(filters: dict[str, Any]) -> dict[str, Any]:
    converted = dict(filters)
    if isinstance(field := filters.get("field"), str):
        converted["field"] = _FIELDS.get(field) or field_path(field.removeprefix("meta."))
    if isinstance(conditions := filters.get("conditions"), list):
        converted["conditions"] = [_convert_condition(each) for each in conditions]
    operator, value = filters.get("operator"), filters.get("value")
    _check_numbers(str(field).removeprefix("meta."), operator, value)
    if operator == "in" and value == []:
        raise FilterError(f"{filters!r}: the list is empty, so nothing would match; give at least one value")
    if operator == "in" and isinstance(value, list) and any(isinstance(each, float | bool) for each in value):
        return {"operator": "OR", "conditions": [_convert_condition({**filters, **_equal(each)}) for each in value]}
    if operator == "==" and isinstance(value, float):  # Qdrant has no exact match for floats
        return {"operator": "AND", "conditions": [{**converted, "operator": bound} for bound in (">=", "<=")]}
    return converted


def _equal(value: object) -> dict[str, Any]:
    return {"operator": "==", "value": value}


def _check_numbers(key: str, operator: object, value: object) -> None:
    """Refuse numbers that Qdrant cannot hold or would round, as `gircse_rag.qdrant.search` does.

    :raises InputError: the value is, or the list contains, such a number.
    """
    for each in value if isinstance(value, list) else [value]:
        if isinstance(each, int | float):
            as_filter({key: {bound: each} if (bound := _BOUNDS.get(str(operator))) else each})
