"""Metrics for rankings, correlations and clusterings of plain arrays, with bootstrap replicates.

All values are fractions (0 to 1; correlations -1 to 1). Reports show them times 100.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gircse_rag.errors import require

REPLICATES = 1000
RANKED = 100  # documents kept per query: the largest cut-off below
RETRIEVAL_METRICS = ("ndcg@10", "recall@10", "recall@100", "mrr@10")

Run = dict[str, dict[str, float]]
Array = np.ndarray


@dataclass(frozen=True)
class Estimate:
    """A score, and the same score on resampled queries, pairs or texts: `replicates` (R,) float64."""

    value: float
    replicates: Array

    @property
    def interval(self) -> tuple[float, float]:
        """The 2.5 and 97.5 percentiles of the replicates."""
        low, high = np.percentile(self.replicates, (2.5, 97.5))
        return float(low), float(high)


def resamples(count: int, seed: int, replicates: int = REPLICATES) -> Array:
    """Draw row indices (R, count) int32 with replacement. Equal arguments give equal indices, so two scores of one set
    (two values of K, two models) are compared on the same resampled queries."""
    return np.random.default_rng(seed).integers(0, count, size=(replicates, count), dtype=np.int32)


def mean_estimate(values: Array, seed: int) -> Estimate:
    """Estimate the mean of one number per item, `values` (n,)."""
    values = np.asarray(values, dtype=np.float64)
    return Estimate(float(values.mean()), values[resamples(len(values), seed)].mean(axis=1))


def rank(queries: Array, documents: Array, query_ids: Sequence[str], document_ids: Sequence[str]) -> Run:
    """Rank the 100 nearest documents per query by dot product, as an IR run {query id: {document id: score}}.

    `queries` (q, d) and `documents` (n, d) are unit rows. A run is small plain data: one machine can compute it and
    another score it.
    """
    run: Run = {}
    depth = min(RANKED, len(documents))
    for start in range(0, len(queries), 256):
        scores = queries[start : start + 256] @ documents.T
        best = np.argpartition(-scores, depth - 1, axis=1)[:, :depth]
        for row, columns in enumerate(best):
            run[query_ids[start + row]] = {document_ids[int(c)]: float(scores[row, c]) for c in columns}
    return run


def retrieval_metrics(qrels: Mapping[str, Mapping[str, int]], run: Run) -> dict[str, Array]:
    """Compute nDCG@10, recall@10, recall@100 and MRR@10 per query of `qrels`, in its order: arrays (q,) float64.

    Uses trec_eval (`pytrec_eval`): linear gains, logarithmic discount, ties broken by descending document id. A query
    missing from `run` scores 0.

    Raises:
        MissingExtraError: pytrec_eval is not installed.
    """
    pytrec_eval = require("pytrec_eval", "eval")
    judge = pytrec_eval.RelevanceEvaluator(
        {query: dict(judged) for query, judged in qrels.items()}, {"ndcg_cut.10", "recall.10,100", "recip_rank"}
    )
    judged = judge.evaluate(run)
    nothing = {"ndcg_cut_10": 0.0, "recall_10": 0.0, "recall_100": 0.0, "recip_rank": 0.0}
    rows = [judged.get(query, nothing) for query in qrels]
    reciprocal = np.array([row["recip_rank"] for row in rows])
    return {
        "ndcg@10": np.array([row["ndcg_cut_10"] for row in rows]),
        "recall@10": np.array([row["recall_10"] for row in rows]),
        "recall@100": np.array([row["recall_100"] for row in rows]),
        # trec_eval has no cut-off for the reciprocal rank: set it to 0 beyond rank 10.
        "mrr@10": np.where(reciprocal >= 0.1 - 1e-9, reciprocal, 0.0),
    }


def spearman(similarities: Array, scores: Array, seed: int) -> Estimate:
    """Spearman's rank correlation of two (n,) arrays, with average ranks for ties; 0 if either is constant."""
    rankdata = require("scipy.stats", "eval").rankdata
    rows = resamples(len(scores), seed)

    def correlate(x: Array, y: Array) -> Array:
        x, y = (r - r.mean(axis=-1, keepdims=True) for r in (rankdata(x, axis=-1), rankdata(y, axis=-1)))
        scale = np.sqrt((x * x).sum(axis=-1) * (y * y).sum(axis=-1))
        correlation: Array = np.divide((x * y).sum(axis=-1), scale, out=np.zeros_like(scale), where=scale > 0)
        return correlation

    value = correlate(similarities[None], scores[None])[0]
    parts = [correlate(similarities[part], scores[part]) for part in np.array_split(rows, 10)]
    return Estimate(float(value), np.concatenate(parts))


def average_precision(similarities: Array, relevant: Array, seed: int) -> Estimate:
    """Average precision of pairs ranked by similarity; `relevant` (n,) holds 0 and at least one 1.

    Average precision is undefined without a relevant pair: another replicate replaces such a resample.
    """
    score = require("sklearn.metrics", "eval").average_precision_score
    order = np.argsort(-similarities, kind="stable")
    last_of_ties = np.append(np.diff(similarities[order]) != 0, True)
    count = len(relevant)
    weights = np.stack([np.bincount(row, minlength=count) for row in resamples(count, seed)])[:, order]
    hits = np.cumsum(weights * relevant[order], axis=1)[:, last_of_ties]
    retrieved = np.cumsum(weights, axis=1)[:, last_of_ties]
    new_hits = np.diff(hits, axis=1, prepend=0)
    summed = np.sum(new_hits * hits / np.maximum(retrieved, 1), axis=1)
    total = hits[:, -1]
    return Estimate(float(score(relevant, similarities)), np.resize(summed[total > 0] / total[total > 0], REPLICATES))


def v_measure(labels: Sequence[str], assignments: Sequence[Array], seed: int) -> Estimate:
    """Harmonic mean of homogeneity and completeness, averaged over the clusterings `assignments`, each (n,) int.

    Resamples repeat texts, which inflates the v-measure of many small clusters. The replicates are therefore shifted to
    the value: the interval shows the spread over texts without this bias.
    """
    score = require("sklearn.metrics", "eval").v_measure_score
    truth = np.unique(np.asarray(labels), return_inverse=True)[1]
    value = float(np.mean([score(truth, assigned) for assigned in assignments]))
    rows = resamples(len(truth), seed)
    drawn = np.mean([_v_measures(truth, assigned, rows) for assigned in assignments], axis=0)
    return Estimate(value, drawn - drawn.mean() + value)


def _v_measures(truth: Array, assigned: Array, rows: Array) -> Array:
    """V-measure of each resample `rows` (R, n): 2 I(truth; assigned) / (H(truth) + H(assigned)), and 1 for 0/0."""
    width = int(assigned.max()) + 1
    cells = truth * width + assigned
    shape = (int(truth.max()) + 1, width)

    def entropy(counts: Array) -> float:
        shares = counts[counts > 0] / rows.shape[1]
        return float(-np.sum(shares * np.log(shares)))

    measures = np.ones(len(rows))
    for i, row in enumerate(rows):
        joint = np.bincount(cells[row], minlength=shape[0] * width).reshape(shape)
        separate = entropy(joint.sum(axis=0)) + entropy(joint.sum(axis=1))
        if separate > 0:
            measures[i] = 2 * (separate - entropy(joint)) / separate
    return measures


def average_precision_rows(similarities: Array, relevant: Array, ranked: Array) -> Array:
    """Average precision of each row of a similarity matrix (r, n) over its candidates: (r,) float64.

    `relevant` and `ranked` are (r, n) bool; entries that are not `ranked` (such as the query itself) are left out.
    A row without a relevant candidate is NaN.
    """
    order = np.argsort(np.where(ranked, -similarities, np.inf), axis=1, kind="stable")
    hits = np.take_along_axis(relevant & ranked, order, axis=1)
    precision = np.cumsum(hits, axis=1) / np.arange(1, hits.shape[1] + 1)
    total = hits.sum(axis=1)
    summed = np.where(hits, precision, 0.0).sum(axis=1)
    precisions: Array = np.divide(summed, total, out=np.full(len(total), np.nan), where=total > 0)
    return precisions
