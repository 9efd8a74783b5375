"""Points that another library writes into a collection of ours, or reads from it: what their integrations share.

Such a point has no `gircse` record, so `ingest` leaves it alone, and an id of its writer's own:

    id        the writer's own id if it is a UUID, else a uuid5 of it
    payload   what every point has (`points`), and own_id
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
    """The id in Qdrant of a point whose writer calls it `own`."""
    try:
        return str(uuid.UUID(own))
    except ValueError:
        return str(uuid.uuid5(_NAMESPACE, own))


def foreign_payload(own: str, text: str, metadata: dict[str, Any]) -> dict[str, Any]:
    """The payload of a point that is to be written, and whose writer calls it `own`.

    Raises:
        InputError: the metadata is no JSON (`json_text`), as NaN is none; or `own` holds a lone surrogate.
    """
    try:
        json_text(metadata)
        own.encode()
    except ValueError as error:  # InputError, or a lone surrogate
        raise InputError(f"{own!r} cannot be stored: {error}") from error
    return payload_of(own, text, metadata)


def payload_of(own: str, text: str, metadata: dict[str, Any]) -> dict[str, Any]:
    """That payload, unchecked: of a point that is there already."""
    node = {
        "id_": foreign_id(own),
        "metadata": metadata,
        "excluded_embed_metadata_keys": list(metadata),
        "text": text,
        "class_name": "TextNode",
    }
    return {**shared_payload(own, node), _OWN_ID: own}


def read_payload(point_id: object, payload: dict[str, Any] | None) -> tuple[str, str, dict[str, Any]]:
    """What a point holds, whoever wrote it: its writer's id for it, its text and its metadata."""
    payload = payload or {}
    text, metadata = payload.get("page_content"), payload.get("metadata")
    if text is None and "_node_content" in payload:  # LlamaIndex's own store writes nothing else
        node = json.loads(payload["_node_content"])
        text, metadata = node.get("text"), node.get("metadata")
    return str(payload.get(_OWN_ID, point_id)), text or "", metadata or {}
