"""Rows and batches: tokenised beforehand, made in a thread, and for graphs all of one size."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from benchmarks.training_h100.common import SPEC, say
from gircse_rag.prompts import prefix
from gircse_rag.training.data import Batch, Batches, Row, Task, _answers, read_rows, read_tasks

AHEAD = 6  # batches made before they are asked for
NOTHING = np.zeros(1, dtype=np.int32)  # stands for a row's missing negative, and is masked


def load(
    data: Path, tokenizer: Path, ids: Path | None = None
) -> tuple[list[Row], dict[str, Task], PreTrainedTokenizerBase]:
    """All training rows, with their texts in `Cached.ids` (kept in `ids`, by default DATA/ids.npz)."""
    reader = AutoTokenizer.from_pretrained(tokenizer)
    tasks = read_tasks(data / "tasks.json")
    rows = read_rows([data / "train"], tasks)
    Cached.fill(rows, tasks, reader, ids or data / "ids.npz")
    return rows, tasks, reader


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


class Cached(Batches):
    """Batches that tokenise each text once for all runs of this process, and run ahead in a thread."""

    ids: dict[str, np.ndarray] = {}  # noqa: RUF012 - of the process: every run of a plan takes the same texts

    @classmethod
    def fill(cls, rows: Sequence[Row], tasks: dict[str, Task], tokenizer: PreTrainedTokenizerBase, store: Path) -> None:
        """All texts of `rows`, tokenised once and kept in `store`."""
        texts: dict[str, None] = {}
        for row in rows:
            head = prefix(SPEC.query_template, tasks[row.task].instruction)
            texts[head + row.query] = None
            for text in (row.positive, row.negative):
                if text is not None:
                    texts[(head if tasks[row.task].symmetric else "") + text] = None
        keys = list(texts)
        if not store.exists():
            encoded = []
            for start in range(0, len(keys), 20_000):
                found = tokenizer.backend_tokenizer.encode_batch_fast(
                    keys[start : start + 20_000], add_special_tokens=False
                )
                encoded += [np.array(e.ids[: SPEC.max_length], dtype=np.uint16) for e in found]
            fresh = store.with_suffix(".new.npz")
            np.savez(fresh, ids=np.concatenate(encoded), ends=np.cumsum([len(e) for e in encoded]))
            fresh.rename(store)
        saved = np.load(store)
        ends, ids = saved["ends"], saved["ids"].astype(np.int32)
        starts = np.concatenate(([0], ends[:-1]))
        cls.ids = {key: ids[a:b] for key, a, b in zip(keys, starts.tolist(), ends.tolist(), strict=True)}
        say("tokens", len(ids), "texts", len(keys))

    def _encode(self, texts: list[str], role: str, instruction: str | None) -> list[np.ndarray]:
        head = prefix(self.spec.document_template if role == "document" else self.spec.query_template, instruction)
        missing = [text for text in texts if head + text not in self.ids]
        for text, ids in zip(missing, super()._encode(missing, role, instruction) if missing else [], strict=True):
            self.ids[head + text] = np.array(ids, dtype=np.int32)
        return [self.ids[head + text] for text in texts]

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


class Fixed(Cached):
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
        head = prefix(SPEC.query_template, task.instruction)
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
        texts = [self.ids[head + row.query] for row in rows]
        texts += [NOTHING if text is None else self.ids[side + text] for text in passages]
        return Batch(rows, texts, np.arange(len(rows)) * 2, right, cursor)
