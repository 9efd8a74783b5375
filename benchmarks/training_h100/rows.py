"""Rows and batches: made ahead in a thread, and for graphs all of one size."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from benchmarks.training_h100.common import SPEC, say
from gircse_rag.prompts import prefix
from gircse_rag.training.batches import Batch, Batches, _answers
from gircse_rag.training.data import Row, Task, read_rows, read_tasks

AHEAD = 6  # batches made before they are asked for
NOTHING = [0]  # stands for a row's missing negative, and is masked


def load(
    data: Path, tokenizer: Path, wordings: Path | None = None
) -> tuple[list[Row], dict[str, Task], PreTrainedTokenizerBase]:
    """All training rows; `wordings`: a JSON file of further wordings of each task's instruction."""
    tasks = read_tasks(data / "tasks.json")
    for name, more in json.loads(wordings.read_text()).items() if wordings else ():
        tasks[name] = tasks[name]._replace(instructions=(*tasks[name].instructions, *more))
    return read_rows([data / "train"], tasks), tasks, AutoTokenizer.from_pretrained(tokenizer)


def mixed(rows: Sequence[Row], mix: dict[str, float]) -> list[Row]:
    """Rows with tasks repeated or thinned, by factor; a task that is not named has factor 1.

    The trainer's own `mixed` rounds where this cuts: other rows, and so another order of all of them, than those that
    the recorded plans were trained on.
    """
    by_task: dict[str, list[Row]] = {}
    for row in rows:
        by_task.setdefault(row.task, []).append(row)
    out: list[Row] = []
    for task, members in by_task.items():
        factor = mix.get(task, 1.0)
        generator = np.random.default_rng(0)
        whole, part = int(factor), factor - int(factor)
        out += members * whole
        out += [members[i] for i in generator.permutation(len(members))[: int(part * len(members))]]
    return out


class Ahead(Batches):
    """Batches that are made ahead, in a thread."""

    def _ids(self, texts: list[str]) -> list[list[int]]:
        found = self.tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [encoded.ids[: SPEC.max_length] for encoded in found]

    def start(self, cursor: int = 0) -> Iterator[Batch]:
        ahead: queue.Queue[Batch] = queue.Queue(maxsize=AHEAD)
        stop = threading.Event()

        def work() -> None:
            for batch in Batches.start(self, cursor):
                if stop.is_set():
                    return
                ahead.put(batch)

        threading.Thread(target=work, daemon=True).start()
        try:
            while True:
                yield ahead.get()
        finally:
            stop.set()
            while not ahead.empty():
                ahead.get_nowait()


class Fixed(Ahead):
    """Batches of exactly `batch_size` rows (short ones repeat their first rows), passages as positive, negative, ...

    Tasks of few classes would take many right answers for in-batch negatives. CLINC's domains follow from the pairs of
    its two tasks (same intent implies same domain; the negative of the intent task shares the domain): exactly the 10
    domains come out. The tasks in OWN_ONLY have no such help: there only the row's own negative counts.
    """

    OWN_ONLY = frozenset({"snips_same_intent", "medical_same_question_type", "aws_same_action"})

    def __init__(self, rows: list[Row], tasks: dict[str, Task], *args: object, **kwargs: object) -> None:
        super().__init__(rows, tasks, *args, **kwargs)
        wide, links = "clinc_same_domain", []
        for row in rows:
            if row.task in (wide, "clinc_same_intent"):
                links.append(Row(wide, row.query, row.positive, None))
            if row.task == "clinc_same_intent" and row.negative is not None:
                links.append(Row(wide, row.query, row.negative, None))
        if links:
            domains = _answers(links, tasks)
            say("domains", len(set(domains.values())))
            self._answers.update(domains)

    def encode(self, rows: list[Row], cursor: int = 0) -> Batch:
        rows = rows + rows[: self.batch_size - len(rows)]
        task = self.tasks[rows[0].task]
        head = prefix(SPEC.query_template, self._wording(task, cursor))
        passages = [text for row in rows for text in (row.positive, row.negative)]
        columns: dict[str | None, list[int]] = {}
        for column, passage in enumerate(passages):
            columns.setdefault(passage, []).append(column)
        right = np.zeros((len(rows), len(passages)), dtype=bool)
        right[:, columns.pop(None, [])] = True
        for index, row in enumerate(rows):
            for passage in self._answers[row.task, row.query] & columns.keys():
                right[index, columns[passage]] = True
        if row.task in self.OWN_ONLY:
            own = np.zeros_like(right)
            own[np.arange(len(rows)), np.arange(len(rows)) * 2 + 1] = True
            right |= ~own
        side = head if task.symmetric else ""
        found = iter(
            self._ids([head + row.query for row in rows] + [side + text for text in passages if text is not None])
        )
        texts = [next(found) for _ in rows]
        texts += [NOTHING if text is None else next(found) for text in passages]
        return Batch(rows, texts, np.arange(len(rows)) * 2, right, cursor)
