"""No document, passage or wording is on two sides of a split."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gircse_rag.adaptation.corpus import Question, normalise
from gircse_rag.adaptation.split import MIN_QUESTIONS, split_questions
from gircse_rag.errors import InputError


def question(text: str, documents: set[int], chunks: set[int] | None = None) -> Question:
    return Question(text, None, frozenset(documents), frozenset(chunks or documents), by_document=chunks is None)


@given(st.integers(0, 2**32), st.integers(40, 120), st.integers(20, 150))
def test_sides_share_nothing_and_lose_nothing(seed: int, count: int, documents: int) -> None:
    draw = np.random.default_rng(seed)
    questions = [
        question(f"question {draw.integers(150)}", set(draw.integers(documents, size=draw.integers(1, 3)).tolist()))
        for _ in range(count)
    ]
    try:
        split = split_questions(questions)
    except InputError:
        return
    sides = split.train, split.validation, split.held_out
    assert sorted(number for side in sides for number in side) == list(range(len(questions)))
    for one in sides:
        for other in sides:
            if one is not other:
                assert not {d for i in one for d in questions[i].documents} & {
                    d for i in other for d in questions[i].documents
                }
                assert not {normalise(questions[i].text) for i in one} & {normalise(questions[i].text) for i in other}


def test_shares_and_determinism() -> None:
    questions = [question(f"question {i}", {i}) for i in range(200)]
    split = split_questions(questions)
    assert (len(split.train), len(split.validation), len(split.held_out)) == (120, 30, 50)
    assert split == split_questions(questions) and split.by == "document"


def test_one_long_document_is_split_by_passage() -> None:
    split = split_questions([question(f"question {i}", {0}, {i}) for i in range(60)])
    assert split.by == "passage" and len(split.held_out) == 15


def test_too_few_questions_are_refused_with_the_number_needed() -> None:
    with pytest.raises(InputError, match=f"there are 5 different questions .* at least {MIN_QUESTIONS}"):
        split_questions([question(f"question {i}", {i}) for i in range(5)])


def test_questions_about_one_document_are_refused() -> None:
    with pytest.raises(InputError, match="the same answer"):
        split_questions([question(f"question {i}", {0}) for i in range(60)])
