"""Build evaluation sets from development rows in the training format, beside the evaluation folder.

    ../tasks.json           {task: {"instruction", "symmetric", "source", "dev_rows"}}; uses the first instruction
    ../dev/SOURCE.jsonl     {"task", "query", "positive", "negative"}; negative may be null

`dev/TASK`, one per task, is a small retrieval set for choosing checkpoints. Its corpus are the positives and negatives.
`contrast/dev_*` gives one text two opposed instructions, for which the evaluation folder has no labels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

from gircse_rag.errors import InputError
from gircse_rag.evaluation.formats import sample
from gircse_rag.evaluation.records import records
from gircse_rag.evaluation.sets import Choice, ChoiceContrastSet, EvalSet, RetrievalSet
from gircse_rag.prompts import flag, paraphrases

# Mutually exclusive tasks: an answer to one of them is wrong for the others. `clinc_same_intent` and
# `clinc_same_domain` are not exclusive: requests with the same intent have the same domain.
EXCLUSIVE: Mapping[str, tuple[str, ...]] = {
    "contrast/dev_medical": ("medical_same_topic", "medical_same_question_type"),
    "contrast/dev_aws": ("aws_same_service", "aws_same_action"),
    "contrast/dev_words": ("word_synonym", "word_antonym", "word_hypernym", "word_hyponym", "word_example"),
    "contrast/dev_context": ("context_definition", "context_synonym", "context_hypernym"),
}


def find_sets(base: Path, limit: int | None, overrides: Mapping[str, str]) -> dict[str, Callable[[], EvalSet]]:
    """Map set names to loaders for the rows in `base`; {} unless it holds a `dev` folder and a `tasks.json`."""
    catalogue = base / "tasks.json"
    if not catalogue.is_file() or not (base / "dev").is_dir():
        return {}
    try:
        tasks: dict[str, dict[str, Any]] = json.loads(catalogue.read_text(encoding="utf-8"))
        present = {
            name: {
                "instruction": overrides.get(f"dev/{name}", paraphrases(task["instruction"])[0]),
                "symmetric": flag(task.get("symmetric")),
                "source": task["source"],
            }
            for name, task in tasks.items()
            if {"dev_rows", "source"} & task.keys() and task["dev_rows"] and task["instruction"]
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{catalogue}: expected {{task: {{instruction, symmetric (optional), source, dev_rows}}}} "
            f"({type(error).__name__}: {error})"
        ) from error
    loaders: dict[str, Callable[[], EvalSet]] = {}
    for name, members in EXCLUSIVE.items():
        available = [m for m in members if m in present]
        if len(available) > 1:
            loaders[name] = partial(_load_contrast, base, name, {m: present[m] for m in available}, limit)
    for name in sorted(present):
        loaders[f"dev/{name}"] = partial(_load_retrieval, base, name, present[name], limit)
    return loaders


def _read_rows(base: Path, name: str, task: Mapping[str, Any]) -> list[dict[str, Any]]:
    path = base / "dev" / f"{task['source']}.jsonl"
    rows = []
    for number, row in records(path, ("task", "query", "positive")):
        if not isinstance(row.get("negative"), str | None):
            raise InputError(f"{path}, line {number}: 'negative' must be a string or null")
        if row["task"] == name:
            rows.append(row)
    if not rows:
        raise InputError(f"{path}: no development row of the task {name!r}, but tasks.json lists some")
    return rows


def _load_retrieval(base: Path, name: str, task: Mapping[str, Any], limit: int | None) -> RetrievalSet:
    rows = _read_rows(base, name, task)
    rows = [rows[int(i)] for i in sample(len(rows), limit)]
    documents = list(dict.fromkeys(text for row in rows for text in (row["positive"], row.get("negative")) if text))
    identifiers = {text: f"d{i}" for i, text in enumerate(documents)}
    queries: dict[str, str] = {}
    qrels: dict[str, dict[str, int]] = {}
    for row in rows:
        query = queries.setdefault(row["query"], f"q{len(queries)}")
        qrels.setdefault(query, {})[identifiers[row["positive"]]] = 1
    return RetrievalSet(
        name=f"dev/{name}",
        instruction=task["instruction"],
        query_ids=tuple(queries.values()),
        query_texts=tuple(queries),
        document_ids=tuple(identifiers.values()),
        document_texts=tuple(identifiers),
        qrels=qrels,
        symmetric=bool(task["symmetric"]),
    )


def _load_contrast(
    base: Path, name: str, tasks: Mapping[str, Mapping[str, Any]], limit: int | None
) -> ChoiceContrastSet:
    answers: dict[str, dict[str, str]] = {}
    for task_name, task in tasks.items():
        for row in _read_rows(base, task_name, task):
            answers.setdefault(row["query"], {}).setdefault(task_name, row["positive"])
    choices = [
        Choice(
            query,
            (tasks[one]["instruction"], tasks[other]["instruction"]),
            (positives[one], positives[other]),
            (bool(tasks[one]["symmetric"]), bool(tasks[other]["symmetric"])),
        )
        for query, positives in answers.items()
        for one, other in combinations(positives, 2)
        if positives[one] != positives[other]
    ]
    if not choices:
        raise InputError(f"{name}: no development query occurs in two of the tasks {', '.join(tasks)}")
    return ChoiceContrastSet(name, tuple(choices[int(i)] for i in sample(len(choices), limit)))
