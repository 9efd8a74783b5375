"""Split questions into training, validation and held-out ones, so that no document is on two sides.

Questions that share a document belong together, and so do questions of the same words. Each such group is on one side:
an answer seen in training cannot be asked for again in the report.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gircse_rag.adaptation.corpus import Question, normalise
from gircse_rag.errors import InputError

MIN_QUESTIONS = 40
"""Below this, the held-out questions are too few to tell a gain from chance."""
HELD_OUT, VALIDATION = 0.25, 0.15
"""Shares of the questions. Validation chooses the checkpoint; the report scores the held-out ones once."""
MAX_HELD_OUT = 200
"""More held-out questions narrow the intervals little and cost time."""


@dataclass(frozen=True)
class Split:
    """Numbers of the questions on each side.

    Attributes:
        train, validation, held_out: numbers of questions, ascending.
        by: "document", or "passage" if too few documents would separate the sides.
    """

    train: list[int]
    validation: list[int]
    held_out: list[int]
    by: str


def split_questions(questions: Sequence[Question], seed: int = 0) -> Split:
    """Split questions by document; by passage if the documents are too few.

    Raises:
        InputError: fewer than `MIN_QUESTIONS` questions, or (nearly) all have the same answer.
    """
    if len(questions) < MIN_QUESTIONS:
        raise InputError(
            f"there are {len(questions)} different questions with an answer; adapting needs at least {MIN_QUESTIONS}, "
            "because a part of them is held out to measure what it gains"
        )
    wanted = math.ceil(VALIDATION * len(questions)), min(MAX_HELD_OUT, math.ceil(HELD_OUT * len(questions)))
    ways = {"document": [question.documents for question in questions]}
    if not any(question.by_document for question in questions):
        ways["passage"] = [question.chunks for question in questions]
    for by, answers in ways.items():
        split = _split(questions, answers, wanted, seed, by)
        if split is not None:
            return split
    raise InputError(
        "too many questions have the same answer to hold some out without repeating their answers in training; "
        "add questions about other documents, or name passages instead of documents"
    )


def _split(
    questions: Sequence[Question], answers: Sequence[frozenset[int]], wanted: tuple[int, int], seed: int, by: str
) -> Split | None:
    """None if a side would be empty, or if validation and held-out take more than twice their share."""
    groups = _group(questions, answers)
    order = np.random.default_rng(seed).permutation(len(groups))
    sides: list[list[int]] = [[], [], []]
    # The largest group trains: it would make a side of questions about one thing.
    largest = max(range(len(groups)), key=lambda index: len(groups[index]))
    for index in order:
        group = groups[int(index)]
        room = [side for side in (0, 1) if len(sides[side]) + len(group) <= math.ceil(1.2 * wanted[side])]
        short = [side for side in room if len(sides[side]) < wanted[side]]
        sides[2 if int(index) == largest or not short else short[0]].extend(group)
    validation, held_out, train = (sorted(side) for side in sides)
    enough = len(validation) >= wanted[0] / 2 and len(held_out) >= wanted[1] / 2 and len(train) >= len(questions) / 3
    return Split(train, validation, held_out, by) if enough else None


def _group(questions: Sequence[Question], answers: Sequence[frozenset[int]]) -> list[list[int]]:
    """Join questions that share an answer or all their words (union-find)."""
    parents = list(range(len(questions)))

    def root(number: int) -> int:
        while parents[number] != number:
            parents[number] = parents[parents[number]]
            number = parents[number]
        return number

    first: dict[object, int] = {}
    for number, question in enumerate(questions):
        for key in (normalise(question.text), *answers[number]):
            parents[root(number)] = root(first.setdefault(key, number))
    groups: dict[int, list[int]] = {}
    for number in range(len(questions)):
        groups.setdefault(root(number), []).append(number)
    return list(groups.values())
