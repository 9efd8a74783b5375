"""Training rows: each training question with its answer and hard negatives, and rehearsed sentences."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gircse_rag.adaptation.candidates import mine
from gircse_rag.adaptation.corpus import Question
from gircse_rag.adaptation.inputs import Inputs
from gircse_rag.adaptation.probes import INSTRUCTION, REHEARSAL, make_rehearsal
from gircse_rag.adaptation.split import Split
from gircse_rag.adaptation.wordings import wordings

REHEARSAL_SHARE = 0.15
"""Rehearsed sentences among all training rows."""


@dataclass(frozen=True)
class Example:
    """Numbers of a training question, its answer's chunk, and its hard negatives."""

    question: int
    positive: int
    negatives: list[int]


def mine_examples(
    questions: Sequence[Question], split: Split, dense: np.ndarray, lexical: np.ndarray, pool: np.ndarray
) -> list[Example]:
    """Mine the training questions' answers and negatives from the scores (all questions, pool)."""
    forbidden = frozenset[int]().union(*(questions[i].chunks for i in (*split.validation, *split.held_out)))
    return [Example(i, *mine(questions[i], dense[i], lexical[i], pool, forbidden)) for i in split.train]


def write(folder: Path, inputs: Inputs, examples: Sequence[Example]) -> tuple[Path, Path]:
    """Write rows.jsonl and tasks.json; return their paths.

    A task's wordings are its instruction, which is drawn most often, its paraphrases, and the general instruction.
    """
    tasks: dict[str, dict[str, object]] = {}
    lines = []
    for example in examples:
        question = inputs.questions[example.question]
        asked = (question.instruction,) if question.instruction else inputs.instructions
        name = f"questions: {asked[0]}"
        if name not in tasks:
            said = [text for one in asked for text in [one] * 4 + wordings(one)[1:]]
            tasks[name] = {"instruction": [*said, inputs.spec.default_instruction], "symmetric": False}
        positive, *negatives = (inputs.corpus.chunks[i] for i in (example.positive, *example.negatives))
        positive = question.answer or positive
        row = {"task": name, "query": question.text, "positive": positive, "negative": None}
        lines += [row | {"negative": negative} for negative in negatives] or [row]
    tasks[REHEARSAL] = {"instruction": INSTRUCTION, "symmetric": True}
    rehearsed = make_rehearsal(round(len(lines) * REHEARSAL_SHARE / (1 - REHEARSAL_SHARE)))
    unique = dict.fromkeys(json.dumps(line) for line in (*lines, *(row._asdict() for row in rehearsed)))
    folder.mkdir(parents=True, exist_ok=True)
    data, catalogue = folder / "rows.jsonl", folder / "tasks.json"
    data.write_text("".join(f"{line}\n" for line in unique), encoding="utf-8")
    catalogue.write_text(json.dumps(tasks), encoding="utf-8")
    return data, catalogue
