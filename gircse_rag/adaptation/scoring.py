"""Rank the pool for held-out questions, before and after, dense and hybrid; nDCG, MRR and hit@1 with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gircse_rag.adaptation.corpus import Question
from gircse_rag.evaluation.metrics import mean_estimate, retrieval_metrics

METRICS = ("ndcg@10", "mrr@10", "hit@1")
_RRF = 60
"""Constant of reciprocal rank fusion, as in Qdrant and the paper (Cormack et al. 2009)."""
_SEED = 0


@dataclass(frozen=True)
class Interval:
    """A mean over questions with its 95% bootstrap interval, as fractions."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Ranking:
    """What one ranking gives per question.

    Attributes:
        values: per metric, (q,) float64.
        ranks: (q,) int64, rank of the first answer, from 1.
    """

    values: Mapping[str, np.ndarray]
    ranks: np.ndarray

    def interval(self, metric: str) -> Interval:
        """The metric's mean and interval."""
        return _interval(self.values[metric])

    def gain(self, before: Ranking, metric: str) -> Interval:
        """The difference to another ranking of the same questions, resampled in pairs."""
        return _interval(self.values[metric] - before.values[metric])


def score(questions: Sequence[Question], scores: np.ndarray, pool: np.ndarray, owners: np.ndarray) -> Ranking:
    """Score a ranking of chunks.

    If a question's pairs name documents, a document ranks where its best chunk does, and counts once.

    Args:
        questions: q questions.
        scores: (q, p), higher is better.
        pool: (p,) numbers of the ranked chunks, ascending.
        owners: (n,) document of each chunk of the corpus.
    """
    starts = np.flatnonzero(np.diff(owners[pool], prepend=-1))  # first chunk of each document in the pool
    run, qrels, ranks = {}, {}, []
    for number, question in enumerate(questions):
        row = scores[number]
        if question.by_document:
            units, answers, row = owners[pool][starts], question.documents, np.maximum.reduceat(row, starts)
        else:
            units, answers = pool, question.chunks
        right = np.isin(units, list(answers))
        best = np.argsort(-row, kind="stable")
        ranks.append(1 + int(np.argmax(right[best])) if right.any() else len(units) + 1)
        # trec_eval breaks ties by document id, so the ranks themselves are the scores
        run[f"{number}"] = {f"{units[i]}": float(-place) for place, i in enumerate(best[:100])}
        qrels[f"{number}"] = {f"{unit}": 1 for unit in units[right]} or {"none": 1}
    found = retrieval_metrics(qrels, run)
    first = np.array(ranks, dtype=np.int64)
    return Ranking({"ndcg@10": found["ndcg@10"], "mrr@10": found["mrr@10"], "hit@1": (first == 1) * 1.0}, first)


def fuse(dense: np.ndarray, lexical: np.ndarray) -> np.ndarray:
    """Reciprocal rank fusion of two (q, p) score matrices. A chunk that shares no word has no lexical rank."""
    by_words = np.where(lexical > 0, 1 / (_RRF + _ranks(lexical)), 0.0)
    fused: np.ndarray = 1 / (_RRF + _ranks(dense)) + by_words
    return fused


def mean_ndcg(scores: np.ndarray, relevant: np.ndarray) -> float:
    """Mean nDCG@10 of (q, p) scores; `relevant` (q, p) bool."""
    questions = [
        Question("", None, frozenset(), frozenset(np.flatnonzero(row).tolist()), by_document=False) for row in relevant
    ]
    chunks = np.arange(scores.shape[1])
    return float(score(questions, scores, chunks, chunks).values["ndcg@10"].mean())


def _ranks(scores: np.ndarray) -> np.ndarray:
    """Rank of each entry in its row, from 1."""
    order = np.argsort(-scores, axis=1, kind="stable")
    ranks: np.ndarray = np.argsort(order, axis=1, kind="stable") + 1
    return ranks


def _interval(values: np.ndarray) -> Interval:
    estimate = mean_estimate(values, _SEED)
    return Interval(estimate.value, *estimate.interval)
