"""Embed the pool and questions with one model, and rank the pool for the held-out questions.

As in a collection, documents are embedded at the model's K; questions are asked at every K of the report.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gircse_rag.adaptation.corpus import Question
from gircse_rag.adaptation.inputs import Inputs
from gircse_rag.adaptation.report import Wording
from gircse_rag.adaptation.scoring import Ranking, fuse, score
from gircse_rag.adaptation.vectors import StoredVectors


class Measured:
    """The pool's vectors by one model.

    Args:
        inputs: the run's documents and questions.
        store: embeds with the model.
        pool: (p,) numbers of the embedded chunks, ascending.
        by_words: (q, p) BM25 scores of all questions.
        steps: values of K for questions.
    """

    def __init__(
        self, inputs: Inputs, store: StoredVectors, pool: np.ndarray, by_words: np.ndarray, steps: tuple[int, ...]
    ) -> None:
        self._inputs, self._store, self._pool, self._by_words, self._steps = inputs, store, pool, by_words, steps
        own = inputs.spec.document_steps
        self._own = steps.index(own)
        self._chunks = store.of([inputs.corpus.chunks[i] for i in pool], "document", steps=(own,))[:, 0]

    def ask(self, questions: Sequence[Question]) -> np.ndarray:
        """Vectors of questions, each with its instruction: (n, len(steps), d)."""
        groups: dict[str, list[int]] = {}
        for place, question in enumerate(questions):
            groups.setdefault(self._inputs.instruction_of(question), []).append(place)
        vectors = np.empty((len(questions), len(self._steps), self._chunks.shape[1]), dtype=np.float32)
        for instruction, places in groups.items():
            texts = [questions[place].text for place in places]
            vectors[places] = self._store.of(texts, "query", instruction, steps=self._steps)
        return vectors

    def similarities(self, asked: np.ndarray) -> np.ndarray:
        """Cosines of questions (n, len(steps), d) and the pool at the model's own K: (n, p)."""
        similarities: np.ndarray = asked[:, self._own] @ self._chunks.T
        return similarities

    def rank(self, asked: np.ndarray, numbers: Sequence[int]) -> dict[tuple[str, int], Ranking]:
        """Score n questions, by number and vectors (n, len(steps), d): a ranking per kind of search and K."""
        questions, by_words = [self._inputs.questions[i] for i in numbers], self._by_words[numbers]
        owners = self._inputs.corpus.owners
        rankings = {}
        for place, k in enumerate(self._steps):
            dense = asked[:, place] @ self._chunks.T
            rankings["dense", k] = score(questions, dense, self._pool, owners)
            rankings["hybrid", k] = score(questions, fuse(dense, by_words), self._pool, owners)
        return rankings

    def compare_wordings(self) -> list[Wording]:
        """Ask the held-out questions under each instruction, and bare, as documents are embedded."""
        inputs, questions = self._inputs, self._inputs.held_out
        texts = [question.text for question in questions]
        own = [question.instruction for question in questions if question.instruction]
        listed = dict.fromkeys((*inputs.instructions, *own, inputs.spec.default_instruction))

        def rank(*asked: Any) -> Ranking:
            vectors = self._store.of(texts, *asked, steps=self._steps)
            return score(questions, self.similarities(vectors), self._pool, inputs.corpus.owners)

        bare = rank("document")
        asked = {instruction: rank("query", instruction) for instruction in listed}
        return [
            Wording(instruction, ranking.interval("ndcg@10"), ranking.gain(bare, "ndcg@10"))
            for instruction, ranking in (*asked.items(), (None, bare))
        ]
