"""What checks score during training: validation questions, chunks to rank, and probes, as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from transformers import PreTrainedTokenizerBase

from gircse_rag.adaptation.corpus import Question
from gircse_rag.adaptation.inputs import Inputs
from gircse_rag.adaptation.probes import INSTRUCTION, make_probes
from gircse_rag.prompts import Role
from gircse_rag.tokens import encode


@dataclass(frozen=True)
class Validation:
    """Token ids of what is scored during training.

    Attributes:
        queries: q validation questions.
        passages: p chunks: their answers, and chunks that look like answers.
        relevant: (q, p) bool.
        first, second: n probes each.
        grades: n grades of the probes.
    """

    queries: list[list[int]]
    passages: list[list[int]]
    relevant: np.ndarray
    first: list[list[int]]
    second: list[list[int]]
    grades: list[int]


def make_validation(
    inputs: Inputs,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    dense: np.ndarray,
    lexical: np.ndarray,
    pool: np.ndarray,
    passages: int,
) -> Validation:
    """Tokenise the validation questions, about `passages` chunks and the probes.

    Args:
        dense, lexical: (all questions, p) scores.
        pool: (p,) numbers of the chunks that may be ranked.
    """
    numbers, spec, probes = inputs.split.validation, replace(inputs.spec, max_length=max_length), make_probes()
    asked = [inputs.questions[i] for i in numbers]
    kept = _choose_passages(asked, dense[numbers], lexical[numbers], pool, passages)

    def tokenize(text: str, role: Role, instruction: str | None = None) -> list[int]:
        return list(encode(tokenizer, spec, text, role=role, instruction=instruction).token_ids)

    return Validation(
        [tokenize(question.text, "query", inputs.instruction_of(question)) for question in asked],
        [tokenize(inputs.corpus.chunks[pool[i]], "document") for i in kept],
        np.array([np.isin(pool[kept], list(question.chunks)) for question in asked]),
        [tokenize(text, "symmetric", INSTRUCTION) for text in probes.first],
        [tokenize(text, "symmetric", INSTRUCTION) for text in probes.second],
        probes.grades,
    )


def _choose_passages(
    questions: Sequence[Question], dense: np.ndarray, lexical: np.ndarray, pool: np.ndarray, count: int
) -> list[int]:
    """Choose positions in the pool: every answer, then the chunks ranked high, up to `count`."""
    kept: dict[int, None] = {}
    for number, question in enumerate(questions):
        answers = np.flatnonzero(np.isin(pool, list(question.chunks)))
        kept.update(dict.fromkeys(int(i) for i in answers[np.argsort(-dense[number, answers])][:2]))
    by_model, by_words = np.argsort(-dense, axis=1), np.argsort(-lexical, axis=1)
    for rank in range(len(pool)):
        for ranking in (by_model, by_words):
            for i in ranking[:, rank]:
                if len(kept) >= count:
                    return sorted(kept)
                kept.setdefault(int(i))
    return sorted(kept)
