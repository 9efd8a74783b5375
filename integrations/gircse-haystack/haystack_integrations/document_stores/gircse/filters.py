"""Haystack's filters on the payload of our points."""

from __future__ import annotations

from typing import Any, cast

from gircse_rag.errors import InputError
from gircse_rag.qdrant.filters import field_path
from haystack.errors import FilterError
from haystack_integrations.document_stores.qdrant.filters import convert_filters_to_qdrant
from pydantic import ValidationError
from qdrant_client import models

_FIELDS = {"content": "page_content", "id": "own_id"}


def to_qdrant(filters: dict[str, Any] | None) -> models.Filter | None:
    """Qdrant's filter.

    :raises FilterError: the filter is not one.
    """
    try:
        return cast("models.Filter | None", convert_filters_to_qdrant(_renamed(filters) if filters else None))
    except InputError as error:
        raise FilterError(str(error)) from error
    except ValidationError as error:
        raise FilterError(
            f"{filters!r} has a value that Qdrant cannot compare so: it takes strings, integers and booleans, and "
            "floats only with ==, >, >=, < and <="
        ) from error


def _renamed(filters: dict[str, Any]) -> dict[str, Any]:
    renamed = dict(filters)
    if isinstance(field := filters.get("field"), str):
        renamed["field"] = _FIELDS.get(field) or field_path(field.removeprefix("meta."))
    if isinstance(conditions := filters.get("conditions"), list):
        renamed["conditions"] = [_renamed(each) for each in conditions]
    operator, value = filters.get("operator"), filters.get("value")
    if operator == "in" and value == []:
        raise FilterError(f"{filters!r}: the list is empty, so nothing could match")
    if operator == "==" and isinstance(value, float):  # Qdrant matches no floats, and has ranges of them
        return {"operator": "AND", "conditions": [{**renamed, "operator": bound} for bound in (">=", "<=")]}
    return renamed
