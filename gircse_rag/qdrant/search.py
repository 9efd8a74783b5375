"""Instructed questions: `search`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from qdrant_client import QdrantClient, models

from gircse_rag.errors import InputError
from gircse_rag.qdrant.points import read_record
from gircse_rag.qdrant.schema import VECTOR, check_collection, store_errors

if TYPE_CHECKING:
    from gircse_rag.embedder import Embedder


@dataclass(frozen=True)
class Hit:
    """A chunk that answers a question.

    Attributes:
        id: of the point in Qdrant.
        score: cosine similarity, in [-1, 1].
        text: the chunk's.
        metadata: the document's, `source` (its id, unless it brought its own) and `_chunk`: the chunk's number, chunks,
            start, end and headings.
        document: the document's id; None for a point that something else wrote into the collection.
    """

    id: str
    score: float
    text: str
    metadata: dict[str, Any]
    document: str | None


def search(
    question: str,
    *,
    collection: str,
    embedder: Embedder,
    client: QdrantClient,
    instruction: str | None = None,
    limit: int = 5,
    steps: int | Literal["auto"] | None = None,
    query_filter: models.Filter | None = None,
) -> list[Hit]:
    """The chunks most similar to a question under an instruction, best first.

    Args:
        instruction: what makes a chunk a good answer; the spec's default if None.
        limit: hits at most.
        steps: refinement steps of the question; None takes what the documents were embedded with. Another number is
            legal, and the embedder warns about it (GircseWarning).
        query_filter: Qdrant's filter on the payload, passed through; the documents' metadata is under "metadata.".

    Raises:
        InputError: the question is empty or no text, or `limit` is below 1.
        SpecMismatchError: the collection was made with another model or spec; both are named.
        StoreError: no such collection, not one of ours, or the server does not answer.
    """
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise InputError(f"limit must be an integer of at least 1, not {limit!r}")
    with store_errors(client):
        check_collection(client, collection, embedder.spec)
        result = embedder.embed([question], role="query", instruction=instruction, steps=steps)
        points = client.query_points(
            collection,
            query=result.vectors[0].tolist(),
            using=VECTOR,
            query_filter=query_filter,
            limit=limit,
            with_payload=True,
        ).points
    return [_hit(point) for point in points]


def _hit(point: models.ScoredPoint) -> Hit:
    payload = point.payload or {}
    record = read_record(payload)
    return Hit(
        id=str(point.id),
        score=point.score,
        text=payload.get("page_content", ""),
        metadata=payload.get("metadata") or {},
        document=None if record is None else record.document,
    )
