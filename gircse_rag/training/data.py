"""Instructed triplets: reading and checking them.

A row is {"task", "query", "positive", "negative"} (negative may be null); tasks.json names each task's instruction.
"""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gircse_rag.errors import InputError
from gircse_rag.prompts import flag, paraphrases
from gircse_rag.tokens import check_text


class Task(NamedTuple):
    """What a task's texts are rendered with: one of its `instructions`, drawn for each batch.

    `in_batch=False`: its rows take no negatives from each other. For relations of few classes ("the same kind of
    action"), where many rows of a batch would be right answers that nobody marked.
    """

    instructions: tuple[str, ...]
    symmetric: bool
    in_batch: bool = True


class Row(NamedTuple):
    """One training example; `negative` may be None."""

    task: str
    query: str
    positive: str
    negative: str | None


def read_tasks(path: str | Path) -> dict[str, Task]:
    """`tasks.json`: {task: {"instruction": str or [str, ...], "symmetric": bool, "in_batch": bool (optional), ...}}.

    Raises:
        InputError: the file is missing or a task has no instruction.
    """
    path, made, name = Path(path), {}, ""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        for name, task in found.items():
            flags = flag(task.get("symmetric", False)), flag(task.get("in_batch", True))
            made[name] = Task(paraphrases(task["instruction"]), *flags)
        return made
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f'{path} does not name the tasks: it must be JSON {{task: {{"instruction": text or [text, ...], '
            f'"symmetric": bool}}}} ({name and f"task {name!r}: "}{type(error).__name__}: {error})'
        ) from error


def read_rows(paths: Sequence[str | Path], tasks: Mapping[str, Task]) -> list[Row]:
    """Rows of JSONL files (.jsonl, .jsonl.gz), in file order; a folder stands for the files in it, sorted.

    Raises:
        InputError: a file is missing, empty or no JSON lines, or a row is unusable (`check_rows`).
    """
    rows: list[Row] = []
    for path in _files(paths):
        try:
            with (
                gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file
            ):
                found = [
                    (f"{path}, line {number}", json.loads(line)) for number, line in enumerate(file, 1) if line.strip()
                ]
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise InputError(f"{path} cannot be read as JSON lines: {error}") from error
        if not found:
            raise InputError(f"{path} is empty; leave it out")
        rows.extend(check_rows(found, tasks))
    _refuse_duplicates(rows)
    return rows


def rows_of(dataset: Iterable[Mapping[str, Any]], tasks: Mapping[str, Task]) -> list[Row]:
    """Rows of a Hugging Face dataset (or of any dicts) with the columns task, query, positive and negative.

    Raises:
        InputError: it is empty, or a row is unusable (`check_rows`).
    """
    rows = list(check_rows(((f"row {index}", row) for index, row in enumerate(dataset)), tasks))
    if not rows:
        raise InputError("the dataset is empty")
    _refuse_duplicates(rows)
    return rows


def check_rows(found: Iterable[tuple[str, Any]], tasks: Mapping[str, Task]) -> Iterator[Row]:
    """Rows from dicts, each with the place it came from.

    Raises:
        InputError: no positive, an unknown task, or a text that cannot be embedded; the message names the place.
    """
    for place, row in found:
        if not isinstance(row, Mapping) or not row.get("query") or not row.get("positive"):
            raise InputError(f'{place}: a row needs "task", "query" and "positive"; this is {str(row)[:120]}')
        if not isinstance(row.get("task"), str) or row["task"] not in tasks:
            raise InputError(
                f"{place}: task {row.get('task')!r} is not among the tasks; add its instruction to tasks.json"
            )
        for field in ("query", "positive", "negative"):
            if row.get(field) is not None:
                try:
                    check_text(row[field])
                except InputError as error:
                    raise InputError(f"{place}: {field}: {error}") from error
        yield Row(row["task"], row["query"], row["positive"], row.get("negative"))


def mixed(rows: Sequence[Row], factors: Mapping[str, float]) -> list[Row]:
    """Each task's rows `factor` times: whole copies, and a fixed random part for what is left of the factor.

    Raises:
        InputError: a factor names no task among the rows, is negative or infinite.
    """
    found = {row.task for row in rows}
    for task, factor in factors.items():
        if task not in found or not 0 <= factor < math.inf:
            raise InputError(f"mixture: {task}: {factor}: a finite factor >= 0 of a task that has rows is needed")
    out: list[Row] = []
    for task in sorted(found):
        members, factor = [row for row in rows if row.task == task], factors.get(task, 1.0)
        part = np.random.default_rng(0).permutation(len(members))[: round((factor - int(factor)) * len(members))]
        out += members * int(factor) + [members[i] for i in part]
    return out


def _files(paths: Sequence[str | Path]) -> Iterator[Path]:
    for path in map(Path, paths):
        if path.is_dir():
            found = sorted([*path.glob("*.jsonl"), *path.glob("*.jsonl.gz")])
            if not found:
                raise InputError(f"{path} holds no .jsonl or .jsonl.gz file")
            yield from found
        else:
            yield path


def _refuse_duplicates(rows: Sequence[Row]) -> None:
    seen: dict[Row, int] = {}
    for index, row in enumerate(rows):
        if row in seen:
            raise InputError(
                f"rows {seen[row]} and {index} (from 0, over all files) are equal: {row.task}: {row.query[:80]!r}; "
                "remove one: in a batch they would be each other's negatives",
                index=index,
            )
        seen[row] = index
