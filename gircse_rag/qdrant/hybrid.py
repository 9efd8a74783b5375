"""Rank by both vectors: `Hybrid`.

    both queries in one request, without payloads -> `fuse` -> payloads of the hits

Fusion happens here and not in the store, for three reasons: each hit keeps both ranks, the scores may be scaled and
weighted (Qdrant's own fusions cannot), and every store gives the same result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qdrant_client import QdrantClient, models

from gircse_rag.lexical.fusion import DEPTH, Fused, fuse
from gircse_rag.qdrant.lexical import LEXICAL
from gircse_rag.qdrant.queries import (
    DOCUMENT,
    Id,
    Options,
    Question,
    Ranked,
    count_texts,
    dense_vector,
    in_parts,
    query_points,
)
from gircse_rag.qdrant.schema import RECORD, VECTOR

_POINTS_PER_REQUEST = 256
_LARGEST_LIMIT = 2**31 - 1


@dataclass(frozen=True)
class Hybrid:
    """Ranks by the dense and the lexical vector, fused."""

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
            pool = last if options.mmr is None else options.mmr_candidates
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
                models.QueryRequest(
                    query=question.vector, using=VECTOR, score_threshold=options.score_threshold, **common
                )
            )
            if question.terms is not None:
                requests.append(models.QueryRequest(query=question.terms, using=LEXICAL, **common))
        answers = iter(query_points(self.client, self.collection, requests))
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
            "group_by": DOCUMENT,
            "group_size": size,
            "limit": max(DEPTH, options.limit),
            "query_filter": options.condition,
            "with_payload": [RECORD],
        }
        ask = self.client.query_points_groups
        dense = ask(
            self.collection, query=question.vector, using=VECTOR, score_threshold=options.score_threshold, **settings
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
        by_vector = [(point.id, point.score) for point in self.options.reach_minimum(dense)]
        fused = fuse(by_vector, [(point.id, point.score) for point in lexical], texts)
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
                score_threshold=self.options.score_threshold,
                with_payload=False,
            )
            good = {point.id for point in self.options.reach_minimum(answer.points)}
        return [each for each in fused if each.dense_rank is not None or each.id in good]

    def _diversify(self, pool: Sequence[Fused], diversity: float) -> list[Fused]:
        """Maximal marginal relevance: fused score against similarity to the points chosen before."""
        points = self._retrieve((each.id for each in pool), with_payload=False, with_vectors=[VECTOR])
        pool = [each for each in pool if each.id in points]
        if not pool:
            return []
        vectors = np.asarray([dense_vector(points[each.id]) for each in pool], dtype=np.float32)
        scores = np.array([each.score for each in pool])
        count = min(self.options.limit + self.options.offset, len(pool))
        return [pool[row] for row in _choose_diverse(scores, vectors, diversity, count)]

    def _retrieve(self, ids: Iterator[Id], **settings: Any) -> dict[Id, models.Record]:
        wanted = list(dict.fromkeys(ids))
        return {
            point.id: point
            for part in in_parts(wanted, _POINTS_PER_REQUEST)
            for point in self.client.retrieve(self.collection, part, **settings)
        }


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
