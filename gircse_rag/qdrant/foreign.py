"""Points that other libraries write to or read from a gircse collection; shared by the integrations.

Such points have no `gircse` record, so `ingest` ignores them. They keep the id that their library gave them:

    id        that id if it is a UUID, else a uuid5 of it
    payload   the fields common to all points (see `points`), and that id as own_id
"""

from __future__ import annotations

import json
import uuid
from typing import Any

from gircse_rag.documents.metadata import json_text
from gircse_rag.errors import InputError
from gircse_rag.qdrant.points import shared_payload

_NAMESPACE = uuid.UUID("0c9d5f53-5a2e-5d0f-8f0e-3f6f1f1f7c55")
_OWN_ID = "own_id"


def foreign_id(own: str) -> str:
    """The Qdrant id of a point whose library uses the id `own`."""
    try:
        return str(uuid.UUID(own))
    except ValueError:
        return str(uuid.uuid5(_NAMESPACE, own))


def foreign_payload(own: str, text: str, metadata: dict[str, Any]) -> dict[str, Any]:
    """Check and build the payload of a new point with the library's id `own`.

    Raises:
        InputError: the metadata is not JSON (see `json_text`; NaN is not), or `own` contains a lone surrogate.
    """
    try:
        json_text(metadata)
        own.encode()
    except ValueError as error:  # InputError, or UnicodeEncodeError for a lone surrogate
        raise InputError(f"{own!r} cannot be stored: {error}") from error
    return payload_of(own, text, metadata)


def payload_of(own: str, text: str, metadata: dict[str, Any]) -> dict[str, Any]:
    """Build the same payload without checks, for a point that exists already."""
    node = {
        "id_": foreign_id(own),
        "metadata": metadata,
        "excluded_embed_metadata_keys": list(metadata),
        "text": text,
        "class_name": "TextNode",
    }
    return {**shared_payload(own, node), _OWN_ID: own}


def read_payload(point_id: object, payload: dict[str, Any] | None) -> tuple[str, str, dict[str, Any]]:
    """Read a point of any writer: (its id in the writer's library, text, metadata)."""
    payload = payload or {}
    text, metadata = payload.get("page_content"), payload.get("metadata")
    if text is None and "_node_content" in payload:  # the only field that LlamaIndex's own store writes
        node = json.loads(payload["_node_content"])
        text, metadata = node.get("text"), node.get("metadata")
    return str(payload.get(_OWN_ID, point_id)), text or "", metadata or {}
