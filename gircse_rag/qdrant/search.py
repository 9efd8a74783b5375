"""Search a collection with one question (`search`), several (`search_batch`), or in two passes (coarse to fine)."""

from __future__ import annotations

import reprlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from qdrant_client import QdrantClient, models

from gircse_rag.errors import GircseWarning, InputError
from gircse_rag.qdrant.filters import Filter, as_filter
from gircse_rag.qdrant.foreign import read_payload
from gircse_rag.qdrant.limits import check_count
from gircse_rag.qdrant.points import read_record
from gircse_rag.qdrant.schema import RECORD, VECTOR, check_collection
from gircse_rag.qdrant.stores import store_errors

if TYPE_CHECKING:
    from gircse_rag.embedder import Embedder

_QUERIES_PER_REQUEST = 64
_MMR_CANDIDATES = 10
"""Candidates per requested hit for MMR. Qdrant's default, one per hit, would only reorder the hits."""


@dataclass(frozen=True, repr=False)
class Hit:
    """A chunk found by a search.

    Attributes:
        id: id of the point in Qdrant.
        score: cosine similarity, in [-1, 1].
        text: text of the chunk.
        metadata: metadata of the document, with `source` (the document's id, unless the document sets it) and `_chunk`:
            number, chunks, start, end, headings, and the page if there are pages.
        document: id of the document; None for points written by other tools.
    """

    id: str
    score: float
    text: str
    metadata: dict[str, Any]
    document: str | None

    def __repr__(self) -> str:
        return f"Hit({self.score:.4f}, {self.document!r}, {reprlib.repr(' '.join(self.text.split()))})"


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
    """Find the chunks most similar to a question under an instruction, best first.

    Args:
        instruction: says what makes a chunk a good answer; the spec's default if None.
        limit: maximum number of hits, or of documents if `group_size` is given.
        offset: number of best hits to skip, for paging.
        steps: refinement steps of the question; None uses those of the documents. Any other number works too, but the
            embedder warns (GircseWarning).
        query_filter: metadata keys and their required values, or a Qdrant filter: see `as_filter`.
        min_score: minimum cosine similarity (Qdrant: score_threshold).
        group_size: maximum number of hits per document. Hits are then grouped by document, best document first. Points
            written by other tools have no document and are skipped.
        mmr: weight of diversity against similarity, 0 to 1 (maximal marginal relevance, Carbonell and Goldstein, 1998).
            Chooses among the best `10 * (limit + offset)` chunks; hits come in order of choice.

    Raises:
        InputError: the question is empty or not a string, or an argument is invalid.
        SpecMismatchError: the collection was made with another model or spec; the message names both.
        StoreError: the collection does not exist or was not made by gircse, or the server does not answer.
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
    """Run `search` for several questions, batched: one list of hits per question, in order.

    Raises:
        InputError: as `search`; `index` says which question. No search was made.
        SpecMismatchError, StoreError: as `search`.
    """
    _check_options(limit, offset, min_score, group_size, mmr)
    condition = as_filter(query_filter)
    with store_errors(client):
        check_collection(client, collection, embedder.spec)
        vectors = embedder.embed(questions, role="query", instruction=instruction, steps=steps).vectors.tolist()
        options: dict[str, Any] = {"using": VECTOR, "limit": limit, "score_threshold": min_score, "with_payload": True}
        if group_size is not None:
            options |= {"group_by": f"{RECORD}.document", "group_size": group_size, "query_filter": condition}
            results = [client.query_points_groups(collection, query=vector, **options).groups for vector in vectors]
            return [[_to_hit(point) for group in groups for point in group.hits] for groups in results]
        options |= {"filter": condition, "offset": offset or None}
        if mmr is not None:
            pool = min(_MMR_CANDIDATES * (limit + offset), 16_384)
            diverse = models.Mmr(diversity=mmr, candidates_limit=pool)
            vectors = [models.NearestQuery(nearest=vector, mmr=diverse) for vector in vectors]
        requests = [models.QueryRequest(query=vector, **options) for vector in vectors]
        answers = [
            answer
            for start in range(0, len(requests), _QUERIES_PER_REQUEST)
            for answer in client.query_batch_points(collection, requests[start : start + _QUERIES_PER_REQUEST])
        ]
    return [[_to_hit(point) for point in answer.points] for answer in answers]


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
    """Yield a quick answer, then a refined one: two lists of at most `limit` hits, best first.

    The first list uses the question after one refinement step. The second list refines the question to `steps` and
    reranks the `candidates` of the first search, without another search. It is computed only when requested, so a
    caller who stops after the first list pays only for that.

    Raises (when the first list is requested):
        InputError, SpecMismatchError, StoreError: as `search`.
    """
    _check_options(limit, 0, None, None, None)
    if isinstance(candidates, bool) or not isinstance(candidates, int) or candidates < limit:
        raise InputError(f"candidates must be an integer of at least limit ({limit}), not {candidates!r}")
    with store_errors(client):
        check_collection(client, collection, embedder.spec)
        points = client.query_points(
            collection,
            query=_embed_question(embedder, question, instruction, 1).tolist(),
            using=VECTOR,
            query_filter=as_filter(query_filter),
            limit=candidates,
            with_payload=True,
            with_vectors=[VECTOR],
        ).points
    hits = [_to_hit(point) for point in points]
    yield hits[:limit]
    if not hits:
        yield []
        return
    vectors = np.asarray([point.vector[VECTOR] for point in points if isinstance(point.vector, dict)], dtype=np.float32)
    scores = vectors @ _embed_question(embedder, question, instruction, steps)
    best = np.argsort(-scores, kind="stable")[:limit]
    yield [replace(hits[row], score=float(scores[row])) for row in best]


def _embed_question(embedder: Embedder, question: str, instruction: str | None, steps: int) -> np.ndarray[Any, Any]:
    """The question's vector, (d,) float32. No warning about `steps`: the caller chose them on purpose."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="queries take .* refinement step", category=GircseWarning)
        (vector,) = embedder.embed([question], role="query", instruction=instruction, steps=steps).vectors
    return np.asarray(vector)


def _check_options(limit: int, offset: int, min_score: float | None, group_size: int | None, mmr: float | None) -> None:
    group = 1 if group_size is None else group_size
    for name, value, least in (("limit", limit, 1), ("offset", offset, 0), ("group_size", group, 1)):
        check_count(name, value, least)
    for name, share, lowest in (("min_score", min_score, -1), ("mmr", mmr, 0)):
        if share is not None and (not isinstance(share, int | float) or not lowest <= share <= 1):
            raise InputError(f"{name} must be a number from {lowest} to 1, not {share!r}")
    if group_size is not None and (offset or mmr is not None):
        raise InputError(
            "group_size cannot be combined with offset or mmr: Qdrant supports neither for groups; give one of them"
        )


def _to_hit(point: models.ScoredPoint) -> Hit:
    _, text, metadata = read_payload(point.id, point.payload)
    record = read_record(point.payload)
    return Hit(str(point.id), point.score, text, metadata, None if record is None else record.document)
