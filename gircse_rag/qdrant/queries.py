"""An embedded question (`Question`), its answer (`Ranked`), and the requests between them; used by all rankings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from qdrant_client import QdrantClient, models

from gircse_rag.lexical import Bm25Encoder
from gircse_rag.qdrant.lexical import to_sparse
from gircse_rag.qdrant.schema import RECORD, VECTOR

DOCUMENT = f"{RECORD}.document"
"""The payload field by which hits are grouped."""
_QUERIES_PER_REQUEST = 64
_MMR_CANDIDATES = 10
"""Candidates per requested hit for MMR. Qdrant's default, one per hit, would only reorder the hits."""
_MOST_MMR_CANDIDATES = 16_384
_LARGEST_SCORE = 1e38  # below the largest float32
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

    @property
    def mmr_candidates(self) -> int:
        """Number of best chunks among which MMR chooses."""
        return min(_MMR_CANDIDATES * (self.limit + self.offset), _MOST_MMR_CANDIDATES)

    @property
    def score_threshold(self) -> float | None:
        """What the store is asked for: slightly less than `min_score`, because stores differ at equality.

        A server and an edge store leave out a score equal to the threshold, local mode does not. `reach_minimum`
        decides.
        """
        if self.min_score is None:
            return None
        return float(np.nextafter(np.float32(min(self.min_score, _LARGEST_SCORE)), np.float32(-np.inf)))

    def reach_minimum(self, points: Iterable[models.ScoredPoint]) -> list[models.ScoredPoint]:
        """The points whose score is at least `min_score`."""
        return [point for point in points if self.min_score is None or point.score >= self.min_score]


def find_terms(encoder: Bm25Encoder, text: str) -> models.SparseVector | None:
    """The lexical vector of a question, or None if no word of it is a term."""
    weights = encoder.encode_question(text)
    return to_sparse(weights) if weights else None


def query_points(
    client: QdrantClient, collection: str, requests: Sequence[models.QueryRequest]
) -> list[list[models.ScoredPoint]]:
    """Send queries in requests of 64; the points of each, best first."""
    return [
        answer.points
        for part in in_parts(requests, _QUERIES_PER_REQUEST)
        for answer in client.query_batch_points(collection, part)
    ]


def count_texts(client: QdrantClient, collection: str) -> int:
    """The approximate number of points, which `fuse` needs; at least 1."""
    return max(client.count(collection, exact=False).count, 1)


def dense_vector(point: models.Record | models.ScoredPoint) -> Any:
    """The dense vector (d,) of a point that was read with it."""
    assert isinstance(point.vector, dict)
    return point.vector[VECTOR]


def in_parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))
