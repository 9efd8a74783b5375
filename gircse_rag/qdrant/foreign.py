"""Points that other libraries write to or read from a gircse collection; shared by the integrations.

Such points have no `gircse` record, so `ingest` ignores them. They keep the id that their library gave them:

    id        that id if it is a UUID in its canonical spelling, else a uuid5 of it
    payload   the fields common to all points (see `points`), and that id as own_id; LlamaIndex adds its node
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable
from typing import Any

from qdrant_client import QdrantClient

from gircse_rag.documents.metadata import json_text
from gircse_rag.errors import InputError
from gircse_rag.qdrant.points import read_record, shared_payload

_NAMESPACE = uuid.UUID("0c9d5f53-5a2e-5d0f-8f0e-3f6f1f1f7c55")
_OWN_ID = "own_id"


def foreign_id(own: str) -> str:
    """The Qdrant id of a point whose library uses the id `own`.

    Only the canonical spelling of a UUID is its own Qdrant id. Other spellings (upper case, bare hex such as an MD5,
    braces, urn:) are different ids in the library, so each gets a point of its own.
    """
    return own if _parse_uuid(own) == own else str(uuid.uuid5(_NAMESPACE, own))


def find_former_ids(client: QdrantClient, collection: str, own_ids: Iterable[str]) -> dict[str, str]:
    """Find points of `own_ids` that are not at their `foreign_id`: library's id -> Qdrant id.

    Qdrant itself, and earlier versions, take all spellings of a UUID for one id. A point found by another spelling
    belongs to the id that its payload names, or to any if it names none.
    """
    uuids = {own: parsed for own in own_ids if (parsed := _parse_uuid(own)) not in (None, own)}
    if not uuids:
        return {}
    found = client.retrieve(collection, sorted(set(uuids.values())), with_payload=[_OWN_ID])
    owners = {str(point.id): (point.payload or {}).get(_OWN_ID) for point in found}
    return {own: parsed for own, parsed in uuids.items() if parsed in owners and owners[parsed] in (None, own)}


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
    return {**shared_payload(own, text, metadata), _OWN_ID: own}


def make_node(point_id: object, payload: dict[str, Any] | None) -> dict[str, Any]:
    """Build the LlamaIndex TextNode, as a dictionary, of a point that has none in its payload.

    A chunk of `ingest` gets its document as the source, and its place in the document.
    """
    _, text, metadata = read_payload(point_id, payload)
    node = {
        "id_": str(point_id),
        "metadata": metadata,
        "excluded_embed_metadata_keys": list(metadata),
        "text": text,
        "class_name": "TextNode",
    }
    record, chunk = read_record(payload), metadata.get("_chunk")
    if record is None or not isinstance(chunk, dict):
        return node
    return {
        **node,
        "excluded_llm_metadata_keys": ["_chunk"],
        "relationships": {"1": {"node_id": record.document, "node_type": "4", "class_name": "RelatedNodeInfo"}},
        "mimetype": "text/plain",
        "start_char_idx": chunk.get("start"),
        "end_char_idx": chunk.get("end"),
    }


def read_payload(point_id: object, payload: dict[str, Any] | None) -> tuple[str, str, dict[str, Any]]:
    """Read a point of any writer: (its id in the writer's library, text, metadata).

    A text that is not a string is read as "", metadata that is not an object as {}.
    """
    payload = payload or {}
    text, metadata = payload.get("page_content"), payload.get("metadata")
    if text is None and (node := _read_node(payload.get("_node_content"))) is not None:
        text, metadata = node.get("text"), node.get("metadata")
    own = payload.get(_OWN_ID, point_id)
    return str(own), text if isinstance(text, str) else "", metadata if isinstance(metadata, dict) else {}


def _parse_uuid(own: str) -> str | None:
    """The canonical spelling of a UUID, or None if `own` is no UUID."""
    try:
        return str(uuid.UUID(own))
    except ValueError:
        return None


def _read_node(text: object) -> dict[str, Any] | None:
    """The node in `_node_content`, the only field that LlamaIndex's own store writes; None if it is not readable."""
    try:
        node = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return None
    return node if isinstance(node, dict) else None
