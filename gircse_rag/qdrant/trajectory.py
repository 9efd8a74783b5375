"""Rank a collection after every refinement step of a question: `search_trajectory`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from qdrant_client import QdrantClient

from gircse_rag.qdrant.filters import Filter
from gircse_rag.qdrant.queries import Question
from gircse_rag.qdrant.ranking import rank_points
from gircse_rag.qdrant.refining import check_refinable, embed_question, prepare_refinement
from gircse_rag.qdrant.search import Hit, to_hit
from gircse_rag.qdrant.stores import store_errors

if TYPE_CHECKING:
    from gircse_rag.embedder import Embedder


@dataclass(frozen=True)
class Trajectory:
    """The rankings of a question after 1..K refinement steps.

    Attributes:
        mode: "hybrid" or "dense".
        hits: per step, the hits, best first: `hits[k - 1]` are those of `search(..., steps=k)`.
        vectors: (K, d) float32, z_1..z_K.
        soft_tokens: per step, the most probable (token, weight) pairs.
        embed_seconds: time for all steps together.
        rank_seconds: time for all rankings together.
    """

    mode: Literal["hybrid", "dense"]
    hits: list[list[Hit]]
    vectors: NDArray[np.float32]
    soft_tokens: list[list[tuple[str, float]]]
    embed_seconds: float
    rank_seconds: float


def search_trajectory(
    question: str,
    *,
    collection: str,
    embedder: Embedder,
    client: QdrantClient,
    instruction: str | None = None,
    limit: int = 5,
    steps: int = 20,
    query_filter: Filter | None = None,
    mode: Literal["hybrid", "dense"] | None = None,
    top_k: int = 8,
) -> Trajectory:
    """Rank a collection after each of `steps` refinement steps. The question is embedded once.

    Args:
        top_k: number of most probable tokens per soft token.
        others: as `search`.

    Raises:
        InputError, SpecMismatchError, StoreError: as `search`.
    """
    check_refinable(limit, mode, query_filter)
    with store_errors(client):
        terms, ranking, options = prepare_refinement(client, collection, embedder, question, limit, mode, query_filter)
        started = time.perf_counter()
        result = embed_question(embedder, question, instruction, steps, trajectory=True, soft_tokens=top_k)
        embedded = time.perf_counter()
        assert result.trajectory is not None
        vectors = result.trajectory[0]
        questions = [Question(vector, terms) for vector in vectors.tolist()]
        ranked = rank_points(client, collection, questions, ranking, options)
        ended = time.perf_counter()
    return Trajectory(
        mode=ranking,
        hits=[[to_hit(each) for each in hits] for hits in ranked],
        vectors=vectors,
        soft_tokens=result.soft_tokens[0] if result.soft_tokens else [],
        embed_seconds=embedded - started,
        rank_seconds=ended - embedded,
    )
