"""Candidates of a quick search, ranked again for a refined question: `find_candidates`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qdrant_client import QdrantClient, models

from gircse_rag.lexical.fusion import fuse
from gircse_rag.qdrant.lexical import LEXICAL
from gircse_rag.qdrant.queries import Id, Options, Question, Ranked, count_texts, dense_vector, query_points
from gircse_rag.qdrant.schema import VECTOR


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
    dense, *others = query_points(client, collection, requests)
    lexical = [(point.id, point.score) for point in others[0]] if others else None
    points = {point.id: point for point in (*dense, *(others[0] if others else ()))}
    vectors = np.asarray([dense_vector(point) for point in points.values()], dtype=np.float32)
    return Candidates(points, vectors.reshape(len(points), len(question.vector or [])), lexical, texts)
