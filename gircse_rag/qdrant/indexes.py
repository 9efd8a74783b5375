"""Payload indexes, which make filters fast. A server in strict mode (Qdrant Cloud's default) refuses others.

    gircse.document   groups of a search
    gircse.source     `sync`
    metadata.KEY      filters of a search; the caller names them

Local mode has none and needs none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qdrant_client import QdrantClient, models
from qdrant_client.local.qdrant_local import QdrantLocal

from gircse_rag.errors import InputError
from gircse_rag.qdrant.filters import field_path

OWN = ("gircse.document", "gircse.source")
KINDS = tuple(kind.value for kind in models.PayloadSchemaType)


def ensure_indexes(
    client: QdrantClient, collection: str, existing: Mapping[str, Any], kinds: Mapping[str, str]
) -> None:
    """Create the payload indexes that a collection lacks: gircse's own, and those of metadata keys.

    Args:
        existing: the collection's payload schema: field -> anything.
        kinds: metadata key (see `field_path`) -> kind of index (see `KINDS`).

    Raises:
        InputError: a key or a kind is invalid.
    """
    wanted = {**dict.fromkeys(OWN, "keyword"), **check_kinds(kinds)}
    if isinstance(client._client, QdrantLocal):
        return
    for field, kind in wanted.items():
        if field not in existing:
            client.create_payload_index(collection, field, models.PayloadSchemaType(kind), wait=True)


def check_kinds(kinds: Mapping[str, str]) -> dict[str, str]:
    """Payload field -> kind of index, from metadata key -> kind.

    Raises:
        InputError: a key or a kind is invalid.
    """
    for key, kind in kinds.items():
        if kind not in KINDS:
            raise InputError(f"there is no index of kind {kind!r} for {key!r}; use {', '.join(KINDS)}")
    return {field_path(key): kind for key, kind in kinds.items()}
