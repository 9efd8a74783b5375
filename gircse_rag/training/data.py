"""Read and check instructed triplets.

A row is {"task", "query", "positive", "negative"} (negative may be null). tasks.json holds each task's instruction.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gircse_rag.errors import InputError
from gircse_rag.files import open_text
from gircse_rag.prompts import flag, paraphrases
from gircse_rag.tokens import check_text


class Task(NamedTuple):
    """A task and the paraphrases of its instruction; each batch draws one of them.

    `teacher=False`: the config's teacher does not judge this task. An encoder cannot follow its instruction.

    `in_batch=False`: rows take no negatives from each other. This is for relations with few classes ("the same kind of
    action"), where many other rows of a batch would be false negatives.
    """

    instructions: tuple[str, ...]
    symmetric: bool
    in_batch: bool = True
    teacher: bool = True


class Row(NamedTuple):
    """One training example; `negative` may be None."""

    task: str
    query: str
    positive: str
    negative: str | None


def read_tasks(path: str | Path) -> dict[str, Task]:
    """Read tasks.json: {task: {"instruction": str or [str, ...], "symmetric": bool, ...}}.

    Optional keys of a task: "in_batch" and "teacher", true by default.

    Raises:
        InputError: the file is missing or malformed, or a task has no instruction.
    """
    path, made, name = Path(path), {}, ""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        for name, task in found.items():
            flags = [
                flag(task.get("symmetric", False)),
                *(flag(task.get(key, True)) for key in ("in_batch", "teacher")),
            ]
            made[name] = Task(paraphrases(task["instruction"]), *flags)
        return made
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f'{path} is not a valid tasks file: it must be JSON {{task: {{"instruction": text or [text, ...], '
            f'"symmetric": bool}}}} ({name and f"task {name!r}: "}{type(error).__name__}: {error})'
        ) from error


def read_rows(paths: Sequence[str | Path], tasks: Mapping[str, Task]) -> list[Row]:
    """Read rows from JSONL files (.jsonl, .jsonl.gz), in file order; a folder means all its JSONL files, sorted.

    Raises:
        InputError: a file is missing, empty or not JSON lines; two rows are equal; a row lacks a text, has an unknown
            task, or a text that cannot be embedded. The message names file and line.
    """
    rows: list[Row] = []
    for path in _list_files(paths):
        try:
            with open_text(path) as file:
                found = [(number, json.loads(line)) for number, line in enumerate(file, 1) if line.strip()]
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise InputError(f"{path} cannot be read as JSON lines: {error}") from error
        if not found:
            raise InputError(f"{path} is empty; remove it")
        rows += (_check_row(f"{path}, line {number}", row, tasks) for number, row in found)
    seen: dict[Row, int] = {}
    for index, row in enumerate(rows):
        if seen.setdefault(row, index) != index:
            raise InputError(
                f"rows {seen[row]} and {index} (from 0, over all files) are equal: {row.task}: {row.query[:80]!r}; "
                "remove one: in a batch they would be negatives of each other",
                index=index,
            )
    return rows


def _check_row(place: str, row: Any, tasks: Mapping[str, Task]) -> Row:
    if not isinstance(row, dict) or not row.get("query") or not row.get("positive"):
        raise InputError(f'{place}: a row needs "task", "query" and "positive"; got {str(row)[:120]}')
    if not isinstance(row.get("task"), str) or row["task"] not in tasks:
        raise InputError(f"{place}: task {row.get('task')!r} is unknown; add its instruction to tasks.json")
    for field in ("query", "positive", "negative"):
        if row.get(field) is not None:
            try:
                check_text(row[field])
            except InputError as error:
                raise InputError(f"{place}: {field}: {error}") from error
    return Row(row["task"], row["query"], row["positive"], row.get("negative"))


def mix_rows(rows: Sequence[Row], factors: Mapping[str, float]) -> list[Row]:
    """Repeat each task's rows `factor` times. The fraction of a factor selects a fixed random part of the rows.

    Raises:
        InputError: a factor is negative or infinite, or its task has no rows.
    """
    tasks = {row.task for row in rows}
    for task, factor in factors.items():
        if task not in tasks or not 0 <= factor < math.inf:
            raise InputError(f"mixture: {task}: {factor}: the task needs rows, and the factor must be finite and >= 0")
    out: list[Row] = []
    for task in sorted(tasks):
        members, factor = [row for row in rows if row.task == task], factors.get(task, 1.0)
        part = np.random.default_rng(0).permutation(len(members))[: round((factor - int(factor)) * len(members))]
        out += members * int(factor) + [members[i] for i in part]
    return out


def _list_files(paths: Sequence[str | Path]) -> Iterator[Path]:
    for path in map(Path, paths):
        found = sorted([*path.glob("*.jsonl"), *path.glob("*.jsonl.gz")]) if path.is_dir() else [path]
        if not found:
            raise InputError(f"{path} holds no .jsonl or .jsonl.gz file")
        yield from found
