"""Choose the chunks that are ranked and learned from, and mine hard negatives among them.

Embedding 3,000 chunks before and after takes longer than training. Therefore only a pool is embedded: every answer, the
chunks that BM25 ranks high for a question, and a random sample. The report names the size of the pool.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

import numpy as np

from gircse_rag.adaptation.corpus import Corpus, Question
from gircse_rag.adaptation.lexical import Lexical
from gircse_rag.adaptation.split import Split

RANKED = 20
"""Chunks per question that BM25 proposes for the pool."""
NEGATIVES = 4
"""Hard negatives per question."""
_TOO_GOOD = 0.95
"""A chunk that scores at least this share of the answer's score may be an answer that nobody marked (NV-Retriever)."""
_SKIPPED_RANKS = 1
"""The best wrong chunk is the one that is most often an unmarked answer."""


def choose_pool(
    corpus: Corpus, questions: Sequence[Question], split: Split, lexical: Lexical, size: int, seed: int = 0
) -> list[int]:
    """Choose up to `size` chunks, ascending: answers first, then BM25's by rank, then random ones.

    Held-out questions' candidates come before those of training: they make the ranking hard.
    """
    if size >= len(corpus.chunks):
        return list(range(len(corpus.chunks)))
    asked = [questions[number] for number in (*split.held_out, *split.validation, *split.train)]
    chosen: dict[int, None] = {}
    for question in asked:
        answers = sorted(question.chunks)
        if len(answers) > NEGATIVES:  # of a long document, only the chunks that match
            scores = lexical.scores(question.text)
            answers = sorted(answers, key=lambda chunk: -scores[chunk])[:NEGATIVES]
        chosen.update(dict.fromkeys(answers))
    rankings = [[int(chunk) for chunk in _best(lexical.scores(question.text), RANKED)] for question in asked]
    for row in zip_longest(*rankings):
        chosen.update(dict.fromkeys(chunk for chunk in row if chunk is not None and len(chosen) < size))
    for chunk in np.random.default_rng(seed).permutation(len(corpus.chunks)):
        if len(chosen) >= size:
            break
        chosen.setdefault(int(chunk))
    return sorted(chosen)


def _best(scores: np.ndarray, count: int) -> np.ndarray:
    """Numbers of the best `count` chunks with a score above 0, best first."""
    best = np.argsort(-scores, kind="stable")[:count]
    return best[scores[best] > 0]


def mine(
    question: Question, dense: np.ndarray, lexical: np.ndarray, pool: np.ndarray, forbidden: frozenset[int]
) -> tuple[int, list[int]]:
    """Choose the positive of a question and its hard negatives, alternately from the model's and BM25's ranking.

    Args:
        dense, lexical: scores of the pool's chunks, (p,).
        pool: (p,), numbers of the chunks.
        forbidden: chunks that must not be negatives: answers of validation and held-out questions.

    Returns:
        The answer's chunk that the model ranks best, and up to `NEGATIVES` chunks.
    """
    is_answer = np.isin(pool, list(question.chunks))
    positive = int(np.flatnonzero(is_answer)[np.argmax(dense[is_answer])])
    allowed = ~is_answer & ~np.isin(pool, list(forbidden)) & (dense < _TOO_GOOD * dense[positive])
    if not allowed.any():
        allowed = ~is_answer & ~np.isin(pool, list(forbidden))
    by_model = [int(i) for i in np.argsort(-dense, kind="stable") if allowed[i]][_SKIPPED_RANKS:RANKED]
    by_words = [int(i) for i in _best(lexical, RANKED) if allowed[i]]
    mixed: dict[int, None] = {}
    for pair in zip_longest(by_model, by_words):
        mixed.update(dict.fromkeys(i for i in pair if i is not None))
    return int(pool[positive]), [int(pool[i]) for i in list(mixed)[:NEGATIVES]]
