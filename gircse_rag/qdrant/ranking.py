"""Rank the points of a collection for embedded questions: `rank_points`, behind `search` and the integrations.

dense, lexical   one query of the store, here
hybrid           both, fused (`hybrid`)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qdrant_client import QdrantClient, models

from gircse_rag.qdrant.hybrid import Hybrid
from gircse_rag.qdrant.lexical import LEXICAL, Mode
from gircse_rag.qdrant.queries import DOCUMENT, Options, Question, Ranked, query_points
from gircse_rag.qdrant.schema import VECTOR


def rank_points(
    client: QdrantClient, collection: str, questions: Sequence[Question], mode: Mode, options: Options
) -> list[list[Ranked]]:
    """Rank points for each question, best first. Qdrant's errors pass."""
    if mode == "hybrid":
        return Hybrid(client, collection, options).rank(questions)
    if mode == "lexical":
        known = [question.terms for question in questions if question.terms is not None]
        ranked = iter(_rank_by_one(client, collection, known, LEXICAL, options))
        return [[] if question.terms is None else next(ranked) for question in questions]
    return _rank_by_one(client, collection, [question.vector for question in questions], VECTOR, options)


def _rank_by_one(
    client: QdrantClient, collection: str, vectors: Sequence[Any], using: str, options: Options
) -> list[list[Ranked]]:
    """Rank by one vector of the points."""
    settings: dict[str, Any] = {"using": using, "limit": options.limit, "score_threshold": options.score_threshold}
    if options.group_size is not None:
        settings |= {"group_by": DOCUMENT, "group_size": options.group_size, "query_filter": options.condition}
        results = [
            client.query_points_groups(collection, query=vector, with_payload=True, **settings).groups
            for vector in vectors
        ]
        return [
            [Ranked(point, point.score) for group in groups for point in options.reach_minimum(group.hits)]
            for groups in results
        ]
    if options.mmr is not None:
        diverse = models.Mmr(diversity=options.mmr, candidates_limit=options.mmr_candidates)
        vectors = [models.NearestQuery(nearest=vector, mmr=diverse) for vector in vectors]
    settings |= {"filter": options.condition, "offset": options.offset or None, "with_payload": True}
    requests = [models.QueryRequest(query=vector, **settings) for vector in vectors]
    answers = map(options.reach_minimum, query_points(client, collection, requests))
    if options.mmr is not None:
        return [[Ranked(point, point.score) for point in points] for points in answers]
    place = "dense_rank" if using == VECTOR else "lexical_rank"
    return [
        [Ranked(point, point.score, **{place: rank}) for rank, point in enumerate(points, 1 + options.offset)]
        for points in answers
    ]
