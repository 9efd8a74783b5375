"""Fusion of a dense and a lexical ranking: `fuse`.

    score   = (dense + w * lexical) / (1 + w)
    dense   = cosine similarity, scaled so that the best text has 1 and the 100th has 0
    lexical = BM25, scaled so that the best text has 1 and a text without a term of the question has 0
    w       = min(best BM25 / (2 ln(1 + N)), 1.5)     how sure BM25 is, among N texts

The weight matters: the best score is high if one text has several rare words of the question, and low if the words are
common or missing. A word that one text of N has adds about ln(N) or up to twice that. Reciprocal rank fusion sees ranks
only, so it gains less (docs/guides/search.md).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

DEPTH = 100
"""Best texts of each ranking that are fused."""
_SURE = 2.0
"""Best BM25 score, in units of ln(1 + N), at which both rankings weigh the same; 2 to 3 give equal results."""
_MOST = 1.5
"""Largest weight. Without it, the dense ranking would not count for a question of a hundred words."""

Ranking = Sequence[tuple[Hashable, float]]
"""(id, score) of the best texts, best first."""


@dataclass(frozen=True)
class Fused:
    """A text of either ranking.

    Attributes:
        score: in [0, 1].
        dense_rank, lexical_rank: its place in each ranking, from 1; None if that ranking lacks it.
    """

    id: Any
    score: float
    dense_rank: int | None
    lexical_rank: int | None


def fuse(dense: Ranking, lexical: Ranking, texts: int) -> list[Fused]:
    """Fuse a ranking by cosine similarity and one by BM25; best first, and equal scores in the dense order.

    Args:
        texts: number of texts that the inverse document frequencies of the lexical ranking count; at least 1.
    """
    weight = min(lexical[0][1] / (_SURE * math.log1p(texts)), _MOST) if lexical else 0.0
    scores = {text: score / (1 + weight) for text, score in _scale_cosines(dense).items()}
    for text, score in lexical:
        scores[text] = scores.get(text, 0.0) + score / lexical[0][1] * weight / (1 + weight)
    dense_ranks = {text: rank for rank, (text, _) in enumerate(dense, 1)}
    lexical_ranks = {text: rank for rank, (text, _) in enumerate(lexical, 1)}
    best_first = sorted(scores.items(), key=lambda item: -item[1])
    return [Fused(text, score, dense_ranks.get(text), lexical_ranks.get(text)) for text, score in best_first]


def _scale_cosines(ranking: Ranking) -> dict[Hashable, float]:
    """Scale the best score to 1 and the one at `DEPTH`, or the last, to 0. Equal scores become 1."""
    if not ranking:
        return {}
    best, worst = ranking[0][1], ranking[min(DEPTH, len(ranking)) - 1][1]
    span = best - worst
    return {text: max((score - worst) / span, 0.0) if span else 1.0 for text, score in ranking}
