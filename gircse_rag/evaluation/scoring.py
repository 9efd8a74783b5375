"""From vectors to scores: one function for each kind of set. No model here, only arrays (n, d) of unit rows."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np

from gircse_rag.errors import InputError, require
from gircse_rag.evaluation.metrics import (
    Array,
    Estimate,
    average_precision,
    average_precision_rows,
    mean_estimate,
    rank,
    retrieval_metrics,
    spearman,
    v_measure,
)
from gircse_rag.evaluation.sets import (
    ChoiceContrastSet,
    ClusterSet,
    EvalSet,
    NestedContrastSet,
    PairSet,
    ProbeSet,
    RetrievalSet,
)

KMEANS_SEEDS = (0, 1, 2)
# A gain in average precision below a tenth of a point is a rank swap among near-equal neighbours, not an instruction
# obeyed: float noise between two batches of one deaf model stays under it.
LEAST_GAIN = 1e-3
# Chosen on held-out training rows of the five probes, MiniLM's vectors: 10 and 30 tie, 1 is up to 6 points worse.
PROBE_C = 10.0


def score(evaluation_set: EvalSet, vectors: Mapping[str, Array]) -> dict[str, Estimate]:
    """Every metric of a set, the leading one (`evaluation_set.main`) first.

    Args:
        vectors: for each name in `evaluation_set.blocks` its texts' embeddings at one K, (n, d) float32 unit rows.

    Raises:
        MissingExtraError: a library of the `eval` extra is not installed.
    """
    seed = zlib.crc32(evaluation_set.name.encode())
    match evaluation_set:
        case RetrievalSet():
            return retrieval(evaluation_set, vectors["queries"], vectors["documents"], seed)
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


def retrieval(data: RetrievalSet, queries: Array, documents: Array, seed: int) -> dict[str, Estimate]:
    """nDCG@10, recall@10, recall@100, MRR@10, resampled over queries."""
    run = rank(queries, documents, data.query_ids, data.document_ids)
    return {name: mean_estimate(values, seed) for name, values in retrieval_metrics(data.qrels, run).items()}


def pairs(data: PairSet, first: Array, second: Array, seed: int) -> dict[str, Estimate]:
    """Spearman between cosine and human score; average precision leads where the score is 0 or 1."""
    similarities = np.einsum("nd,nd->n", first, second, dtype=np.float64)
    scores = np.asarray(data.scores)
    correlation = spearman(similarities, scores, seed)
    if data.binary:
        return {"average_precision": average_precision(similarities, scores, seed), "spearman": correlation}
    return {"spearman": correlation}


def probe(data: ProbeSet, train: Array, test: Array, seed: int) -> dict[str, Estimate]:
    """Accuracy on the test texts of a logistic regression fitted on the train texts, resampled over test texts.

    The vectors are centred and divided by one number, the root mean square length of the centred train vectors, so that
    a model whose vectors all lie in a narrow cone is regularised as much as any other. Their geometry is kept.
    """
    linear = require("sklearn.linear_model", "eval")
    centre = train.mean(axis=0)
    scale = float(np.sqrt(np.mean(np.sum((train - centre) ** 2, axis=1)))) or 1.0
    classifier = linear.LogisticRegression(C=PROBE_C, max_iter=200)
    classifier.fit((train - centre) / scale, np.asarray(data.train_labels))
    guessed = classifier.predict((test - centre) / scale)
    return {"accuracy": mean_estimate(guessed == np.asarray(data.test_labels), seed)}


def clusters(data: ClusterSet, texts: Array, seed: int) -> dict[str, Estimate]:
    """V-measure of k-means with as many clusters as labels, the mean of three initialisations."""
    k_means = require("sklearn.cluster", "eval").KMeans
    count = len(set(data.labels))
    assignments = [k_means(count, n_init=1, random_state=s).fit(texts).labels_ for s in KMEANS_SEEDS]
    return {"v_measure": v_measure(data.labels, assignments, seed)}


def nested_contrast(data: NestedContrastSet, fine: Array, coarse: Array, seed: int) -> dict[str, Estimate]:
    """Do a text's neighbours change the way the instruction asks? `fine`, `coarse`: (n, d) of the same texts.

    For each text as a query, two average precisions over its ranking of all others: of those with its fine label, and
    of those with its coarse label but another fine one (the first kind taken out of the ranking, being right either
    way). The text follows when the first is higher under the fine instruction than under the coarse one, AND the second
    is higher under the coarse instruction than under the fine one, each by more than `LEAST_GAIN`.

    Vectors that do not depend on the instruction score exactly 0; an instruction that only makes vectors better or
    worse moves both precisions one way and scores 0 too; one that shuffles them at random about 25% at most.
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
        raise InputError(f"{data.name}: no text has a mate of each kind in this sample; raise the limit")
    return {
        "followed": mean_estimate((gain > LEAST_GAIN).all(axis=1), seed),
        "fine_gain": mean_estimate(gain[:, 0], seed),
        "coarse_gain": mean_estimate(gain[:, 1], seed),
    }


def choice_contrast(data: ChoiceContrastSet, vectors: Mapping[str, Array], seed: int) -> dict[str, Estimate]:
    """Forced choices between the answers to two instructions, for one query text.

    `followed`: under both instructions the own answer is strictly nearer. A model that ignores the instruction makes
    the same choice twice and scores 0, a random one 25%. `choices`: single choices that are right; ignoring gives 50%.
    """
    used: dict[str, int] = {}
    right = np.zeros((len(data.choices), 2), dtype=bool)
    for index, choice in enumerate(data.choices):
        for side in (0, 1):
            instruction = choice.instructions[side]
            row = used.get(instruction, 0)
            used[instruction] = row + 1
            candidates = vectors[f"candidates: {instruction}"][2 * row : 2 * row + 2]
            own, other = candidates @ vectors[f"queries: {instruction}"][row]
            right[index, side] = own > other
    both = right[:, 0] & right[:, 1]
    return {"followed": mean_estimate(both, seed), "choices": mean_estimate(right.mean(axis=1), seed)}
