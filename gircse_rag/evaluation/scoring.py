"""Compute scores from vectors, (n, d) arrays of unit rows: one function per kind of set. No model is needed."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Literal

import numpy as np

from gircse_rag.errors import InputError, require
from gircse_rag.evaluation import metrics
from gircse_rag.evaluation.lexical import fuse_runs, rank_by_words
from gircse_rag.evaluation.metrics import Array, Estimate, average_precision_rows, mean_estimate
from gircse_rag.evaluation.sets import (
    ChoiceContrastSet,
    ClusterSet,
    EvalSet,
    NestedContrastSet,
    PairSet,
    ProbeSet,
    RetrievalSet,
)

Mode = Literal["dense", "hybrid", "lexical"]
KMEANS_SEEDS = (0, 1, 2)
# Smaller gains in average precision are rank swaps among near-equal neighbours, not an effect of the instruction.
# Float noise between two batches of a model that ignores instructions stays below it.
LEAST_GAIN = 1e-3
# Inverse regularisation of `probe`. On held-out training rows (5 sets, MiniLM): 10 and 30 tie, 1 loses up to 6 points.
PROBE_C = 10.0


def score(evaluation_set: EvalSet, vectors: Mapping[str, Array], mode: Mode = "dense") -> dict[str, Estimate]:
    """Compute all metrics of a set, the main one (`evaluation_set.main`) first.

    Args:
        vectors: name in `evaluation_set.blocks` -> embeddings of its texts at one K, (n, d) float32 unit rows.
        mode: how a retrieval set is ranked: by vectors, by BM25 ("lexical", which needs no vectors) or by both.

    Raises:
        MissingExtraError: a library of the `eval` extra is not installed.
    """
    seed = zlib.crc32(evaluation_set.name.encode())
    match evaluation_set:
        case RetrievalSet():
            return retrieval(evaluation_set, vectors, seed, mode)
        case PairSet():
            return pairs(evaluation_set, vectors["first"], vectors["second"], seed)
        case ProbeSet():
            return probe(evaluation_set, vectors["train"], vectors["test"], seed)
        case ClusterSet():
            return clusters(evaluation_set, vectors["texts"], seed)
        case NestedContrastSet():
            return nested_contrast(evaluation_set, vectors["fine"], vectors["coarse"], seed)
        case ChoiceContrastSet():
            return choice_contrast(evaluation_set, vectors, seed)


def retrieval(data: RetrievalSet, vectors: Mapping[str, Array], seed: int, mode: Mode) -> dict[str, Estimate]:
    """nDCG@10, recall@10, recall@100, MRR@10, resampled over queries."""
    if mode == "lexical":
        run = rank_by_words(data)
    else:
        run = metrics.rank(vectors["queries"], vectors["documents"], data.query_ids, data.document_ids)
    if mode == "hybrid":
        run = fuse_runs(run, rank_by_words(data), len(data.document_ids))
    return {name: mean_estimate(values, seed) for name, values in metrics.retrieval_metrics(data.qrels, run).items()}


def pairs(data: PairSet, first: Array, second: Array, seed: int) -> dict[str, Estimate]:
    """Spearman between cosine and human score; for scores of 0 and 1, average precision comes first."""
    similarities = np.einsum("nd,nd->n", first, second, dtype=np.float64)
    scores = np.asarray(data.scores)
    correlation = metrics.spearman(similarities, scores, seed)
    if data.binary:
        return {"average_precision": metrics.average_precision(similarities, scores, seed), "spearman": correlation}
    return {"spearman": correlation}


def probe(data: ProbeSet, train: Array, test: Array, seed: int) -> dict[str, Estimate]:
    """Test accuracy of a logistic regression fitted on the train texts, resampled over test texts.

    The vectors are centred and divided by one number, the root mean square length of the centred train vectors. This
    keeps their geometry, and regularises vectors in a narrow cone as much as any others.
    """
    linear = require("sklearn.linear_model", "eval")
    centre = train.mean(axis=0)
    scale = float(np.sqrt(np.mean(np.sum((train - centre) ** 2, axis=1)))) or 1.0
    classifier = linear.LogisticRegression(C=PROBE_C, max_iter=200)
    classifier.fit((train - centre) / scale, np.asarray(data.train_labels))
    predicted = classifier.predict((test - centre) / scale)
    return {"accuracy": mean_estimate(predicted == np.asarray(data.test_labels), seed)}


def clusters(data: ClusterSet, texts: Array, seed: int) -> dict[str, Estimate]:
    """V-measure of k-means with one cluster per label, averaged over three initialisations."""
    k_means = require("sklearn.cluster", "eval").KMeans
    count = len(set(data.labels))
    assignments = [k_means(count, n_init=1, random_state=s).fit(texts).labels_ for s in KMEANS_SEEDS]
    return {"v_measure": metrics.v_measure(data.labels, assignments, seed)}


def nested_contrast(data: NestedContrastSet, fine: Array, coarse: Array, seed: int) -> dict[str, Estimate]:
    """Measure whether neighbours follow the instruction. `fine`, `coarse`: (n, d), the same texts.

    Each text is a query that ranks all others. Its fine precision is the average precision of texts with the same fine
    label (mates). Its coarse precision is that of texts with the same coarse but another fine label (cousins), ranked
    without the mates, which are right either way. A text follows the instruction if its fine precision is higher under
    the fine instruction AND its coarse precision is higher under the coarse one, each by more than `LEAST_GAIN`.

    Vectors that ignore the instruction score exactly 0. An instruction that only improves or only worsens vectors
    changes both precisions alike and also scores 0. One that shuffles vectors at random scores at most about 25%.
    """
    fine_ids = np.unique(np.asarray(data.fine_labels), return_inverse=True)[1]
    coarse_ids = np.unique(np.asarray(data.coarse_labels), return_inverse=True)[1]
    gains: list[Array] = []
    for start in range(0, len(fine), 256):
        rows = np.arange(start, min(start + 256, len(fine)))
        others = np.ones((len(rows), len(fine)), dtype=bool)
        others[np.arange(len(rows)), rows] = False
        mates = fine_ids[rows, None] == fine_ids[None]
        cousins = (coarse_ids[rows, None] == coarse_ids[None]) & ~mates
        by_fine, by_coarse = fine[rows] @ fine.T, coarse[rows] @ coarse.T
        fine_gain = average_precision_rows(by_fine, mates, others) - average_precision_rows(by_coarse, mates, others)
        others &= ~mates
        coarse_gain = average_precision_rows(by_coarse, cousins, others)
        coarse_gain -= average_precision_rows(by_fine, cousins, others)
        gains.append(np.stack([fine_gain, coarse_gain], axis=1))
    gain = np.concatenate(gains)
    gain = gain[~np.isnan(gain).any(axis=1)]
    if not len(gain):
        raise InputError(f"{data.name}: no text shares its fine and its coarse label with others; increase the limit")
    return {
        "followed": mean_estimate((gain > LEAST_GAIN).all(axis=1), seed),
        "fine_gain": mean_estimate(gain[:, 0], seed),
        "coarse_gain": mean_estimate(gain[:, 1], seed),
    }


def choice_contrast(data: ChoiceContrastSet, vectors: Mapping[str, Array], seed: int) -> dict[str, Estimate]:
    """Measure how often the instruction decides which of two candidates is nearer to the same query text.

    `followed`: under both instructions, the right answer is strictly nearer. A model that ignores the instruction
    chooses the same answer twice and scores 0; a random one scores 25%. `choices`: share of single right choices;
    ignoring the instruction gives 50%.
    """
    next_rows: dict[str, int] = {}  # per instruction: `data.blocks` lists its queries in the order of `choices`
    right = np.zeros((len(data.choices), 2), dtype=bool)
    for index, choice in enumerate(data.choices):
        for side in (0, 1):
            instruction = choice.instructions[side]
            row = next_rows.get(instruction, 0)
            next_rows[instruction] = row + 1
            candidates = vectors[f"candidates: {instruction}"][2 * row : 2 * row + 2]
            own, other = candidates @ vectors[f"queries: {instruction}"][row]
            right[index, side] = own > other
    both = right[:, 0] & right[:, 1]
    return {"followed": mean_estimate(both, seed), "choices": mean_estimate(right.mean(axis=1), seed)}
