"""Instructed questions: `search` asks one, `search_batch` several, and `search_coarse_to_fine` answers twice."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from qdrant_client import QdrantClient, models

from gircse_rag.errors import GircseWarning, InputError
from gircse_rag.qdrant.filters import Filter, as_filter
from gircse_rag.qdrant.foreign import read_payload
from gircse_rag.qdrant.points import read_record
from gircse_rag.qdrant.schema import RECORD, VECTOR, check_collection
from gircse_rag.qdrant.stores import store_errors

if TYPE_CHECKING:
    from gircse_rag.embedder import Embedder

_QUERIES_PER_REQUEST = 64
_MMR_CANDIDATES = 10
"""MMR chooses among this many times the hits asked for. Qdrant's own default, as many, only reorders them."""


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
    offset: int = 0,
    steps: int | Literal["auto"] | None = None,
    query_filter: Filter | None = None,
    min_score: float | None = None,
    group_size: int | None = None,
    mmr: float | None = None,
) -> list[Hit]:
    """The chunks most similar to a question under an instruction, best first.

    Args:
        instruction: what makes a chunk a good answer; the spec's default if None.
        limit: hits at most; documents at most with `group_size`.
        offset: skip that many of the best hits: pages.
        steps: refinement steps of the question; None takes what the documents were embedded with. Another number is
            legal, and the embedder warns about it (GircseWarning).
        query_filter: keys of the documents' metadata and what they must be, or Qdrant's own filter: see `as_filter`.
        min_score: leave out hits below this cosine (Qdrant: score_threshold).
        group_size: at most so many hits of a document. They stand together, documents ordered by their best; points
            that something else wrote have no document and are left out.
        mmr: 0 to 1, how much diversity counts against similarity (maximal marginal relevance, Carbonell and Goldstein,
            1998): hits that repeat better ones give way, among the best ten times `limit`. In order of choice.

    Raises:
        InputError: the question is empty or no text, or an argument is refused.
        SpecMismatchError: the collection was made with another model or spec; both are named.
        StoreError: no such collection, not one of ours, or the server does not answer.
    """
    (hits,) = search_batch(
        [question],
        collection=collection,
        embedder=embedder,
        client=client,
        instruction=instruction,
        limit=limit,
        offset=offset,
        steps=steps,
        query_filter=query_filter,
        min_score=min_score,
        group_size=group_size,
        mmr=mmr,
    )
    return hits


def search_batch(
    questions: Sequence[str],
    *,
    collection: str,
    embedder: Embedder,
    client: QdrantClient,
    instruction: str | None = None,
    limit: int = 5,
    offset: int = 0,
    steps: int | Literal["auto"] | None = None,
    query_filter: Filter | None = None,
    min_score: float | None = None,
    group_size: int | None = None,
    mmr: float | None = None,
) -> list[list[Hit]]:
    """`search` for several questions, embedded together and asked together: one list of hits each, in their order.

    Raises:
        InputError: as `search`; `.index` says which question. Nothing was asked.
        SpecMismatchError, StoreError: as `search`.
    """
    _check(limit, offset, min_score, group_size, mmr)
    wanted = as_filter(query_filter)
    with store_errors(client):
        check_collection(client, collection, embedder.spec)
        vectors = embedder.embed(questions, role="query", instruction=instruction, steps=steps).vectors.tolist()
        if group_size is not None:
            return [_groups(client, collection, v, wanted, limit, group_size, min_score) for v in vectors]
        requests = [
            models.QueryRequest(
                query=vector if mmr is None else _diverse(vector, mmr, limit + offset),
                using=VECTOR,
                filter=wanted,
                limit=limit,
                offset=offset or None,
                score_threshold=min_score,
                with_payload=True,
            )
            for vector in vectors
        ]
        answers = [
            answer
            for start in range(0, len(requests), _QUERIES_PER_REQUEST)
            for answer in client.query_batch_points(collection, requests[start : start + _QUERIES_PER_REQUEST])
        ]
    return [[_hit(point) for point in answer.points] for answer in answers]


def search_coarse_to_fine(
    question: str,
    *,
    collection: str,
    embedder: Embedder,
    client: QdrantClient,
    instruction: str | None = None,
    limit: int = 5,
    query_filter: Filter | None = None,
    steps: int = 20,
    candidates: int = 50,
) -> Iterator[list[Hit]]:
    """Answer at once, then better: two lists of at most `limit` hits, best first.

    The first comes from the question after one refinement step. The second is made when it is asked for: the question
    is refined to `steps`, and the first search's `candidates` are ranked again by it, without another search. Who
    takes only the first list pays only for that.

    Raises (when the first list is asked for):
        InputError, SpecMismatchError, StoreError: as `search`.
    """
    _check(limit, 0, None, None, None)
    if isinstance(candidates, bool) or not isinstance(candidates, int) or candidates < limit:
        raise InputError(f"candidates must be an integer of at least limit ({limit}), not {candidates!r}")
    with store_errors(client):
        check_collection(client, collection, embedder.spec)
        points = client.query_points(
            collection,
            query=_refined(embedder, question, instruction, 1).tolist(),
            using=VECTOR,
            query_filter=as_filter(query_filter),
            limit=candidates,
            with_payload=True,
            with_vectors=[VECTOR],
        ).points
    hits = [_hit(point) for point in points]
    yield hits[:limit]
    if not hits:
        yield []
        return
    vectors = np.asarray([point.vector[VECTOR] for point in points if isinstance(point.vector, dict)], dtype=np.float32)
    scores = vectors @ _refined(embedder, question, instruction, steps)
    best = np.argsort(-scores, kind="stable")[:limit]
    yield [replace(hits[row], score=float(scores[row])) for row in best]


def _refined(embedder: Embedder, question: str, instruction: str | None, steps: int) -> np.ndarray[Any, Any]:
    """(d,) float32. Here another number of steps than the documents' is what was asked for, so no warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="queries take .* refinement steps", category=GircseWarning)
        (vector,) = embedder.embed([question], role="query", instruction=instruction, steps=steps).vectors
    return np.asarray(vector)


def _check(limit: int, offset: int, min_score: float | None, group_size: int | None, mmr: float | None) -> None:
    for name, value, least in (("limit", limit, 1), ("offset", offset, 0), ("group_size", group_size, 1)):
        if name == "group_size" and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(f"{name} must be an integer of at least {least}, not {value!r}")
    for name, share, lowest in (("min_score", min_score, -1), ("mmr", mmr, 0)):
        if share is not None and (not isinstance(share, int | float) or not lowest <= share <= 1):
            raise InputError(f"{name} must be a number from {lowest} to 1, not {share!r}")
    if group_size is not None and (offset or mmr is not None):
        raise InputError(
            "group_size goes with neither offset nor mmr: Qdrant has no pages of groups and no diverse ones"
        )


def _diverse(vector: list[float], diversity: float, count: int) -> models.NearestQuery:
    return models.NearestQuery(
        nearest=vector, mmr=models.Mmr(diversity=diversity, candidates_limit=min(_MMR_CANDIDATES * count, 16_384))
    )


def _groups(
    client: QdrantClient,
    collection: str,
    vector: list[float],
    wanted: models.Filter | None,
    limit: int,
    group_size: int,
    min_score: float | None,
) -> list[Hit]:
    groups = client.query_points_groups(
        collection,
        group_by=f"{RECORD}.document",
        query=vector,
        using=VECTOR,
        query_filter=wanted,
        limit=limit,
        group_size=group_size,
        score_threshold=min_score,
        with_payload=True,
    ).groups
    return [_hit(point) for group in groups for point in group.hits]


def _hit(point: models.ScoredPoint) -> Hit:
    _, text, metadata = read_payload(point.id, point.payload)
    record = read_record(point.payload)
    return Hit(
        id=str(point.id),
        score=point.score,
        text=text,
        metadata=metadata,
        document=None if record is None else record.document,
    )
