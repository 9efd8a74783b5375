"""Rows into batches, in an order that can be resumed.

A task has an instruction; the query takes it, and in a symmetric task ("texts about the same disease") positive and
negative take it too. Documents are bare. Where a task words its instruction in several ways, each batch draws one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from transformers import PreTrainedTokenizerBase

from gircse_rag.errors import InputError
from gircse_rag.prompts import Role, prefix
from gircse_rag.spec import EmbeddingSpec
from gircse_rag.tokens import encode
from gircse_rag.training.data import Row, Task


@dataclass(frozen=True)
class Batch:
    """Rows of one task, tokenised.

    Attributes:
        rows: B rows.
        texts: token ids of the B queries, then the passages: B positives, then the negatives there are.
        targets: (B,) int64, each query's positive among the passages.
        false_negatives: (B, P) bool, passages that are a right answer to the query although another row brought them.
        cursor: rows seen since training began, this batch included.
    """

    rows: list[Row]
    texts: list[list[int]]
    targets: np.ndarray
    false_negatives: np.ndarray
    cursor: int


class Batches:
    """An endless, resumable sequence of one-task batches.

    Epoch e shuffles each task's rows and cuts them into batches of nearly equal size, at most `batch_size`, then
    shuffles the batches: tasks come in proportion to their rows. The order (and the wording that a batch draws of its
    task's instruction) depends on the rows, `batch_size` and `seed` alone, so (seed, cursor) is all there is to
    remember; a cursor inside a batch continues with the batch's rest.

    Raises:
        InputError: there are no rows, or one that would have no negative at all.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        tasks: Mapping[str, Task],
        tokenizer: PreTrainedTokenizerBase,
        spec: EmbeddingSpec,
        *,
        batch_size: int,
        seed: int = 0,
    ) -> None:
        if not rows:
            raise InputError("there are no rows to train on")
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}; it must be at least 1")
        self.rows, self.tasks, self.tokenizer, self.spec = list(rows), tasks, tokenizer, spec
        self.batch_size, self.seed = batch_size, seed
        self._answers = _answers(self.rows, tasks)
        members: dict[str, list[int]] = {}
        for index, row in enumerate(self.rows):
            members.setdefault(row.task, []).append(index)
        self._members = [np.array(members[task]) for task in sorted(members)]
        for task in members:
            self._refuse_lonely(task, members[task])

    @cached_property
    def digest(self) -> str:
        """32 hex digits of the rows and their tasks: other rows come in another order."""
        used = sorted({row.task for row in self.rows})
        digest = hashlib.sha256(repr([(task, self.tasks[task]) for task in used]).encode())
        for row in self.rows:
            digest.update(repr(tuple(row)).encode())
        return digest.hexdigest()[:32]

    def check_shares(self, processes: int) -> None:
        """
        Raises:
            InputError: a batch has fewer texts than there are processes: some would have nothing to do.
        """
        for members in self._members:
            smallest = self._smallest(len(members))
            bare = any(self.rows[index].negative is None for index in members)
            if smallest * (2 if bare else 3) < processes:
                task = self.rows[members[0]].task
                raise InputError(
                    f"the task {task!r} makes batches of {smallest} rows, too few for {processes} processes; give it "
                    "more rows, or leave it out (mixture: 0)"
                )

    def start(self, cursor: int = 0) -> Iterator[Batch]:
        """Batches from row `cursor` of the order on, epoch after epoch."""
        while True:
            epoch, seen = divmod(cursor, len(self.rows))
            cursor -= seen
            for indices in self._epoch(epoch):
                done, seen = min(seen, len(indices)), max(0, seen - len(indices))
                cursor += len(indices)
                if done < len(indices):
                    yield self.encode([self.rows[i] for i in indices[done:]], cursor)

    def encode(self, rows: list[Row], cursor: int = 0) -> Batch:
        """Render and tokenise rows of one task."""
        task = self.tasks[rows[0].task]
        instruction = self._wording(task, cursor)
        passages = [row.positive for row in rows] + [row.negative for row in rows if row.negative is not None]
        queries = [row.query for row in rows]
        role: Role = "symmetric" if task.symmetric else "document"
        texts = self._encode(queries, "query", instruction)
        texts += self._encode(passages, role, instruction if task.symmetric else None)
        columns: dict[str, list[int]] = {}
        for column, passage in enumerate(passages):
            columns.setdefault(passage, []).append(column)
        right = np.zeros((len(queries), len(passages)), dtype=bool)
        for index, text in enumerate(queries):
            for passage in self._answers[rows[0].task, text] & columns.keys():
                right[index, columns[passage]] = True
        if not task.in_batch:
            own = np.array([index for index, row in enumerate(rows) if row.negative is not None], dtype=np.int64)
            others = np.ones_like(right)
            others[own, len(rows) + np.arange(len(own))] = False
            right |= others
        return Batch(rows, texts, np.arange(len(rows)), right, cursor)

    def _wording(self, task: Task, cursor: int) -> str:
        """Drawn apart from what else a batch draws (its K, in the trainer)."""
        draw = np.random.default_rng((self.seed, cursor, len(task.instructions)))
        return task.instructions[int(draw.integers(len(task.instructions)))]

    def _encode(self, texts: list[str], role: Role, instruction: str | None) -> list[list[int]]:
        template = self.spec.document_template if role == "document" else self.spec.query_template
        head = prefix(template, instruction)
        rendered = [head + text + self.spec.suffix for text in texts]
        found: list[list[int]] = self.tokenizer(rendered, add_special_tokens=False)["input_ids"]
        for index, ids in enumerate(found):
            if len(ids) > self.spec.max_length:
                prompt = encode(self.tokenizer, self.spec, texts[index], role=role, instruction=instruction)
                found[index] = list(prompt.token_ids)
        return found

    def _smallest(self, rows: int) -> int:
        """Of the batches that a task of so many rows is cut into."""
        return rows // -(-rows // self.batch_size)

    def _refuse_lonely(self, task: str, members: list[int]) -> None:
        """A row with nothing to be told apart from would be a step on a loss of 0."""
        smallest = self._smallest(len(members))
        if smallest > 1 and self.tasks[task].in_batch:
            return
        for index in members:
            if self.rows[index].negative is None:
                alone = "makes batches of one row" if smallest == 1 else "takes no negatives from the batch"
                raise InputError(
                    f"the task {task!r} {alone}, and its row {self.rows[index].query[:80]!r} has no negative: there is "
                    "nothing to tell its positive apart from; give the row a negative, or the task more rows",
                    index=index,
                )

    def _epoch(self, epoch: int) -> list[np.ndarray]:
        generator = np.random.default_rng((self.seed, epoch))
        batches = []
        for members in self._members:
            count = -(-len(members) // self.batch_size)
            batches += np.array_split(generator.permutation(members), count)
        return [batches[i] for i in generator.permutation(len(batches))]


def _answers(rows: Sequence[Row], tasks: Mapping[str, Task]) -> dict[tuple[str, str], frozenset[str]]:
    """Every right answer to (task, query) that any row knows.

    A symmetric task's relation is taken to be transitive: texts joined by a chain of pairs are all right for each.
    """
    answers: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        mine = answers.setdefault((row.task, row.query), set())
        mine.add(row.positive)
        if tasks[row.task].symmetric:
            theirs = answers.setdefault((row.task, row.positive), set())
            if theirs is not mine:
                small, large = sorted((mine | {row.query}, theirs | {row.positive}), key=len)
                large |= small
                for text in large:
                    answers[row.task, text] = large
    frozen = {id(group): frozenset(group) for group in answers.values()}
    return {key: frozen[id(group)] for key, group in answers.items()}
