"""Haystack's filters on the payload of our points."""

from __future__ import annotations

from typing import Any, cast

from haystack_integrations.document_stores.qdrant.filters import convert_filters_to_qdrant
from qdrant_client import models

_FIELDS = {"content": "page_content", "id": "own_id"}


def to_qdrant(filters: dict[str, Any] | None) -> models.Filter | None:
    """Qdrant's filter.

    :raises FilterError: the filter is not one.
    """
    return cast("models.Filter | None", convert_filters_to_qdrant(_renamed(filters) if filters else None))


def _renamed(filters: dict[str, Any]) -> dict[str, Any]:
    renamed = dict(filters)
    if isinstance(field := filters.get("field"), str):
        renamed["field"] = _FIELDS.get(field, f"metadata.{field.removeprefix('meta.')}")
    if isinstance(conditions := filters.get("conditions"), list):
        renamed["conditions"] = [_renamed(each) for each in conditions]
    return renamed
