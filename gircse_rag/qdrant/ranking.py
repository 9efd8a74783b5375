"""Rank the points of a collection for embedded questions: `rank_points`, behind `search` and the integrations.

    dense, lexical   one query of the store
    hybrid           both queries in one request, without payloads -> `fuse` -> payloads of the hits

Fusion happens here and not in the store, for three reasons: each hit keeps both ranks, the scores may be scaled and
weighted (Qdrant's own fusions cannot), and every store gives the same result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from qdrant_client import QdrantClient, models

from gircse_rag.lexical import Bm25Encoder
from gircse_rag.lexical.fusion import DEPTH, Fused, fuse
from gircse_rag.qdrant.lexical import LEXICAL, Mode, to_sparse
from gircse_rag.qdrant.schema import RECORD, VECTOR

_DOCUMENT = f"{RECORD}.document"
_QUERIES_PER_REQUEST = 64
_POINTS_PER_REQUEST = 256
_MMR_CANDIDATES = 10
"""Candidates per requested hit for MMR. Qdrant's default, one per hit, would only reorder the hits."""
_MOST_MMR_CANDIDATES = 16_384
_LARGEST_LIMIT = 2**31 - 1
T = TypeVar("T")
Id = models.ExtendedPointId


@dataclass(frozen=True)
class Question:
    """An embedded question.

    Attributes:
        vector: (d,) floats; None in mode "lexical".
        terms: the lexical vector; None if no word of the question is a term, and in mode "dense".
    """

    vector: list[float] | None
    terms: models.SparseVector | None = None


@dataclass(frozen=True)
class Ranked:
    """A point and its place in the rankings, from 1; see `Hit`."""

    point: models.Record | models.ScoredPoint
    score: float
    dense_rank: int | None = None
    lexical_rank: int | None = None


@dataclass(frozen=True)
class Options:
    """Which points to return; see `search`."""

    limit: int
    offset: int = 0
    condition: models.Filter | None = None
    min_score: float | None = None
    group_size: int | None = None
    mmr: float | None = None


def find_terms(encoder: Bm25Encoder, text: str) -> models.SparseVector | None:
    """The lexical vector of a question, or None if no word of it is a term."""
    weights = encoder.encode_question(text)
    return to_sparse(weights) if weights else None


def rank_points(
    client: QdrantClient, collection: str, questions: Sequence[Question], mode: Mode, options: Options
) -> list[list[Ranked]]:
    """Rank points for each question, best first. Qdrant's errors pass."""
    if mode == "hybrid":
        return _Hybrid(client, collection, options).rank(questions)
    if mode == "lexical":
        known = [question.terms for question in questions if question.terms is not None]
        ranked = iter(_rank_by_one(client, collection, known, LEXICAL, options))
        return [[] if question.terms is None else next(ranked) for question in questions]
    return _rank_by_one(client, collection, [question.vector for question in questions], VECTOR, options)


def _rank_by_one(
    client: QdrantClient, collection: str, vectors: Sequence[Any], using: str, options: Options
) -> list[list[Ranked]]:
    """Rank by one vector of the points."""
    settings: dict[str, Any] = {"using": using, "limit": options.limit, "score_threshold": options.min_score}
    if options.group_size is not None:
        settings |= {"group_by": _DOCUMENT, "group_size": options.group_size, "query_filter": options.condition}
        results = [
            client.query_points_groups(collection, query=vector, with_payload=True, **settings).groups
            for vector in vectors
        ]
        return [[Ranked(point, point.score) for group in groups for point in group.hits] for groups in results]
    if options.mmr is not None:
        pool = min(_MMR_CANDIDATES * (options.limit + options.offset), _MOST_MMR_CANDIDATES)
        diverse = models.Mmr(diversity=options.mmr, candidates_limit=pool)
        vectors = [models.NearestQuery(nearest=vector, mmr=diverse) for vector in vectors]
    settings |= {"filter": options.condition, "offset": options.offset or None, "with_payload": True}
    answers = _query(client, collection, [models.QueryRequest(query=vector, **settings) for vector in vectors])
    if options.mmr is not None:
        return [[Ranked(point, point.score) for point in points] for points in answers]
    place = "dense_rank" if using == VECTOR else "lexical_rank"
    return [
        [Ranked(point, point.score, **{place: rank}) for rank, point in enumerate(points, 1 + options.offset)]
        for points in answers
    ]


@dataclass(frozen=True)
class _Hybrid:
    client: QdrantClient
    collection: str
    options: Options

    def rank(self, questions: Sequence[Question]) -> list[list[Ranked]]:
        options = self.options
        texts = count_texts(self.client, self.collection)
        if options.group_size is not None:
            chosen = [self._group(question, options.group_size, texts) for question in questions]
        else:
            last = options.limit + options.offset
            pool = last if options.mmr is None else min(_MMR_CANDIDATES * last, _MOST_MMR_CANDIDATES)
            fused = self._fuse(questions, min(max(DEPTH, pool), _LARGEST_LIMIT), texts)
            if options.mmr is not None:
                fused = [self._diversify(each[:pool], options.mmr) for each in fused]
            chosen = [each[options.offset : last] for each in fused]
        points = self._retrieve((each.id for fused in chosen for each in fused), with_payload=True)
        return [
            [
                Ranked(points[each.id], each.score, each.dense_rank, each.lexical_rank)
                for each in fused
                if each.id in points  # a point may be deleted meanwhile
            ]
            for fused in chosen
        ]

    def _fuse(self, questions: Sequence[Question], depth: int, texts: int) -> list[list[Fused]]:
        """The fusion of both rankings, each of `depth` points."""
        options = self.options
        common: dict[str, Any] = {"filter": options.condition, "limit": depth, "with_payload": False}
        requests = []
        for question in questions:
            requests.append(
                models.QueryRequest(query=question.vector, using=VECTOR, score_threshold=options.min_score, **common)
            )
            if question.terms is not None:
                requests.append(models.QueryRequest(query=question.terms, using=LEXICAL, **common))
        answers = iter(_query(self.client, self.collection, requests))
        fused = []
        for question in questions:
            dense = next(answers)
            lexical = [] if question.terms is None else next(answers)
            fused.append(self._combine(question, dense, lexical, texts, complete=len(dense) < depth))
        return fused

    def _group(self, question: Question, size: int, texts: int) -> list[Fused]:
        """The best hits of the best documents, best document first."""
        options = self.options
        settings: dict[str, Any] = {
            "group_by": _DOCUMENT,
            "group_size": size,
            "limit": max(DEPTH, options.limit),
            "query_filter": options.condition,
            "with_payload": [RECORD],
        }
        ask = self.client.query_points_groups
        dense = ask(
            self.collection, query=question.vector, using=VECTOR, score_threshold=options.min_score, **settings
        ).groups
        terms = question.terms
        lexical = [] if terms is None else ask(self.collection, query=terms, using=LEXICAL, **settings).groups
        documents = {point.id: group.id for group in (*dense, *lexical) for point in group.hits}
        # Groups come in the order of their best points; within the rankings, points go by their own scores.
        by_vector, by_words = (
            sorted((point for group in groups for point in group.hits), key=lambda point: -point.score)
            for groups in (dense, lexical)
        )
        groups: dict[Any, list[Fused]] = {}
        for each in self._combine(question, by_vector, by_words, texts, complete=len(dense) < settings["limit"]):
            if documents[each.id] in groups or len(groups) < options.limit:
                groups.setdefault(documents[each.id], []).append(each)
        return [each for members in groups.values() for each in members[:size]]

    def _combine(
        self,
        question: Question,
        dense: Sequence[models.ScoredPoint],
        lexical: Sequence[models.ScoredPoint],
        texts: int,
        *,
        complete: bool,
    ) -> list[Fused]:
        """Fuse two rankings, without the points whose cosine similarity is below the minimum.

        Args:
            complete: whether `dense` holds every point that reaches the minimum.
        """
        by_vector, by_words = ([(point.id, point.score) for point in ranking] for ranking in (dense, lexical))
        fused = fuse(by_vector, by_words, texts)
        if self.options.min_score is None:
            return fused
        unsure: list[Any] = [each.id for each in fused if each.dense_rank is None]
        good: set[Id] = set()
        if unsure and not complete:
            answer = self.client.query_points(
                self.collection,
                query=question.vector,
                using=VECTOR,
                query_filter=models.Filter(must=[models.HasIdCondition(has_id=unsure)]),
                limit=len(unsure),
                score_threshold=self.options.min_score,
                with_payload=False,
            )
            good = {point.id for point in answer.points}
        return [each for each in fused if each.dense_rank is not None or each.id in good]

    def _diversify(self, pool: Sequence[Fused], diversity: float) -> list[Fused]:
        """Maximal marginal relevance: fused score against similarity to the points chosen before."""
        points = self._retrieve((each.id for each in pool), with_payload=False, with_vectors=[VECTOR])
        pool = [each for each in pool if each.id in points]
        if not pool:
            return []
        vectors = np.asarray([_dense_vector(points[each.id]) for each in pool], dtype=np.float32)
        scores = np.array([each.score for each in pool])
        count = min(self.options.limit + self.options.offset, len(pool))
        return [pool[row] for row in _choose_diverse(scores, vectors, diversity, count)]

    def _retrieve(self, ids: Iterator[Id], **settings: Any) -> dict[Id, models.Record]:
        wanted = list(dict.fromkeys(ids))
        return {
            point.id: point
            for part in _parts(wanted, _POINTS_PER_REQUEST)
            for point in self.client.retrieve(self.collection, part, **settings)
        }


@dataclass(frozen=True)
class Candidates:
    """Points of both rankings with their vectors, to be ranked again for a refined question.

    Attributes:
        points: by id.
        vectors: (n, d) float32, their dense vectors.
        lexical: their lexical ranking; None in mode "dense" and for a question without terms.
        texts: number of points of the collection; 1 if `lexical` is None.
    """

    points: dict[Id, models.ScoredPoint]
    vectors: NDArray[np.float32]
    lexical: list[tuple[Id, float]] | None
    texts: int

    def rank(self, vector: NDArray[np.float32]) -> list[Ranked]:
        """Rank by `vector` (d,): by cosine similarity, or fused with the lexical ranking."""
        scores = dict(zip(self.points, (self.vectors @ vector).tolist(), strict=True))
        dense = sorted(scores.items(), key=lambda item: -item[1])
        if self.lexical is None:
            return [Ranked(self.points[text], score, rank) for rank, (text, score) in enumerate(dense, 1)]
        return [
            Ranked(self.points[each.id], each.score, each.dense_rank, each.lexical_rank)
            for each in fuse(dense, self.lexical, self.texts)
        ]


def find_candidates(
    client: QdrantClient, collection: str, question: Question, count: int, options: Options
) -> Candidates:
    """The best `count` points of the dense ranking and, if the question has terms, of the lexical ranking."""
    texts = count_texts(client, collection) if question.terms is not None else 1
    settings: dict[str, Any] = {"filter": options.condition, "limit": count, "with_payload": True}
    queries = [(question.vector, VECTOR), *([] if question.terms is None else [(question.terms, LEXICAL)])]
    requests = [
        models.QueryRequest(query=query, using=using, with_vector=[VECTOR], **settings) for query, using in queries
    ]
    dense, *others = _query(client, collection, requests)
    lexical = [(point.id, point.score) for point in others[0]] if others else None
    points = {point.id: point for point in (*dense, *(others[0] if others else ()))}
    vectors = np.asarray([_dense_vector(point) for point in points.values()], dtype=np.float32)
    return Candidates(points, vectors.reshape(len(points), len(question.vector or [])), lexical, texts)


def count_texts(client: QdrantClient, collection: str) -> int:
    """The approximate number of points, which `fuse` needs; at least 1."""
    return max(client.count(collection, exact=False).count, 1)


def _dense_vector(point: models.Record | models.ScoredPoint) -> Any:
    """The dense vector (d,) of a point that was read with it."""
    assert isinstance(point.vector, dict)
    return point.vector[VECTOR]


def _choose_diverse(scores: NDArray[Any], vectors: NDArray[np.float32], diversity: float, count: int) -> list[int]:
    """The first `count` rows of `vectors` (n, d) that MMR chooses, with the relevances `scores` (n,)."""
    similarity = np.full(len(scores), -np.inf, dtype=np.float32)  # to the nearest chosen row
    chosen: list[int] = []
    free = np.ones(len(scores), dtype=bool)
    for _ in range(count):
        penalty = diversity * similarity if chosen else 0
        row = int(np.argmax(np.where(free, (1 - diversity) * scores - penalty, -np.inf)))
        chosen.append(row)
        free[row] = False
        similarity = np.maximum(similarity, vectors @ vectors[row])
    return chosen


def _query(
    client: QdrantClient, collection: str, requests: Sequence[models.QueryRequest]
) -> list[list[models.ScoredPoint]]:
    return [
        answer.points
        for part in _parts(requests, _QUERIES_PER_REQUEST)
        for answer in client.query_batch_points(collection, part)
    ]


def _parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))
