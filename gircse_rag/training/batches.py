"""Cut training rows into batches, in an order that can be resumed.

The query takes its task's instruction. In a symmetric task ("texts about the same disease") positive and negative take
it too; otherwise they are bare documents. If a task has several paraphrases of its instruction, each batch draws one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from transformers import PreTrainedTokenizerBase

from gircse_rag.errors import InputError, plural
from gircse_rag.prompts import Role, prefix
from gircse_rag.spec import EmbeddingSpec
from gircse_rag.tokens import encode
from gircse_rag.training.data import Row, Task


@dataclass(frozen=True)
class Batch:
    """Rows of one task, tokenised.

    Attributes:
        rows: B rows.
        texts: token ids of the B queries, then of the P passages: B positives, then the rows' negatives.
        targets: (B,) int64, index of each query's positive among the passages.
        false_negatives: (B, P) bool, passages from other rows that must not count as negatives of the query.
        cursor: rows seen since training began, including this batch.
        truncated: positions in `texts` of texts that lost their end to `max_length`.
    """

    rows: list[Row]
    texts: list[list[int]]
    targets: np.ndarray
    false_negatives: np.ndarray
    cursor: int
    truncated: tuple[int, ...] = ()

    def describe_text(self, position: int) -> str:
        """Name the text at `position` in `texts`: its row's task, its role in the row, and its start."""
        texts = [("query", row, row.query) for row in self.rows] + [
            ("positive", row, row.positive) for row in self.rows
        ]
        texts += [("negative", row, row.negative) for row in self.rows if row.negative is not None]
        kind, row, text = texts[position]
        return f"the {kind} of a row of task {row.task!r}, {text[:80]!r}"


class Batches:
    """An endless, resumable sequence of one-task batches.

    Each epoch shuffles every task's rows, cuts them into batches of nearly equal size (at most `batch_size`), then
    shuffles the batches: tasks occur in proportion to their rows. Order and drawn instructions depend only on the rows,
    `batch_size` and `seed`, so (seed, cursor) is enough to resume. A cursor inside a batch resumes with its rest.

    Raises:
        InputError: there are no rows, or a row would have no negative.
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
        self._processes = 1
        self._answers = _group_answers(self.rows, tasks)
        members: dict[str, list[int]] = {}
        for index, row in enumerate(self.rows):
            members.setdefault(row.task, []).append(index)
        self._members = [np.array(members[task]) for task in sorted(members)]
        for task in members:
            self._check_negatives(task, members[task])

    @cached_property
    def digest(self) -> str:
        """Hash of the rows and their tasks, which determine the order: 32 hex digits."""
        used = sorted({row.task for row in self.rows})
        digest = hashlib.sha256(repr([(task, self.tasks[task]) for task in used]).encode())
        for row in self.rows:
            digest.update(repr(tuple(row)).encode())
        return digest.hexdigest()[:32]

    def check_shares(self, processes: int) -> None:
        """Check that every process gets a share of every batch, and keep it so for a last batch that is cut.

        Raises:
            InputError: a batch has fewer texts than there are processes.
        """
        self._processes = processes
        for members in self._members:
            smallest = self._smallest_batch(len(members))
            lacks_negatives = any(self.rows[index].negative is None for index in members)
            if smallest * (2 if lacks_negatives else 3) < processes:
                task = self.rows[members[0]].task
                raise InputError(
                    f"the task {task!r} makes batches of {plural(smallest, 'row')}, too few for {processes} processes; "
                    "give it more rows, or leave it out (mixture: 0)"
                )

    def start(self, cursor: int = 0, stop: int | None = None) -> Iterator[Batch]:
        """Yield batches from row `cursor` of the order to row `stop`, where the last batch is cut (None: endlessly).

        With several processes, the last batch keeps at least one text per process, and may end after `stop`.
        """
        while stop is None or cursor < stop:
            epoch, seen = divmod(cursor, len(self.rows))
            cursor -= seen
            for indices in self._make_epoch(epoch):
                done, seen = min(seen, len(indices)), max(0, seen - len(indices))
                cursor += len(indices)
                if done == len(indices):
                    continue
                left = indices[done:]
                if stop is not None and cursor >= stop:
                    wanted = stop - (cursor - len(left))
                    left = left[: max(wanted, -(-self._processes // 2))]
                    yield self.encode([self.rows[i] for i in left], stop - wanted + len(left))
                    return
                yield self.encode([self.rows[i] for i in left], cursor)

    def encode(self, rows: list[Row], cursor: int = 0) -> Batch:
        """Render and tokenise rows of a single task."""
        task = self.tasks[rows[0].task]
        # One paraphrase, with a generator of its own: the trainer draws K from (seed, cursor).
        draw = np.random.default_rng((self.seed, cursor, len(task.instructions)))
        instruction = task.instructions[int(draw.integers(len(task.instructions)))]
        passages = [row.positive for row in rows] + [row.negative for row in rows if row.negative is not None]
        queries = [row.query for row in rows]
        encoded = self._encode(queries, "query", instruction)
        encoded += self._encode(passages, *(("symmetric", instruction) if task.symmetric else ("document", None)))
        texts = [ids for ids, _ in encoded]
        truncated = tuple(position for position, (_, cut) in enumerate(encoded) if cut)
        columns: dict[str, list[int]] = {}
        for column, passage in enumerate(passages):
            columns.setdefault(passage, []).append(column)
        false_negatives = np.zeros((len(queries), len(passages)), dtype=bool)
        for index, text in enumerate(queries):
            for passage in self._answers[rows[0].task, text] & columns.keys():
                false_negatives[index, columns[passage]] = True
        if not task.in_batch:
            own = np.array([index for index, row in enumerate(rows) if row.negative is not None], dtype=np.int64)
            others = np.ones_like(false_negatives)
            others[own, len(rows) + np.arange(len(own))] = False
            false_negatives |= others
        return Batch(rows, texts, np.arange(len(rows)), false_negatives, cursor, truncated)

    def _encode(self, texts: list[str], role: Role, instruction: str | None) -> list[tuple[list[int], bool]]:
        """Token ids of each text, and whether its end was cut."""
        template = self.spec.document_template if role == "document" else self.spec.query_template
        head = prefix(template, instruction)
        rendered = [head + text + self.spec.suffix for text in texts]
        encoded: list[list[int]] = self.tokenizer(rendered, add_special_tokens=False)["input_ids"]
        pairs = [(ids, len(ids) > self.spec.max_length) for ids in encoded]
        for index, (_, cut) in enumerate(pairs):
            if cut:
                prompt = encode(self.tokenizer, self.spec, texts[index], role=role, instruction=instruction)
                pairs[index] = list(prompt.token_ids), True
        return pairs

    def _smallest_batch(self, rows: int) -> int:
        """Size of the smallest batch of a task with `rows` rows."""
        return rows // -(-rows // self.batch_size)

    def _check_negatives(self, task: str, members: list[int]) -> None:
        """Raise if a row would have no negative: its loss would always be 0."""
        smallest = self._smallest_batch(len(members))
        if smallest > 1 and self.tasks[task].in_batch:
            return
        for index in members:
            if self.rows[index].negative is None:
                reason = "makes batches of one row" if smallest == 1 else "takes no negatives from the batch"
                raise InputError(
                    f"the task {task!r} {reason}, and its row {self.rows[index].query[:80]!r} has no negative: "
                    "its loss would always be 0; give the row a negative, or the task more rows",
                    index=index,
                )

    def _make_epoch(self, epoch: int) -> list[np.ndarray]:
        generator = np.random.default_rng((self.seed, epoch))
        batches = []
        for members in self._members:
            batches += np.array_split(generator.permutation(members), -(-len(members) // self.batch_size))
        return [batches[i] for i in generator.permutation(len(batches))]


def _group_answers(rows: Sequence[Row], tasks: Mapping[str, Task]) -> dict[tuple[str, str], frozenset[str]]:
    """Map (task, query) to all passages that any row gives as its positive.

    A symmetric task's relation counts as transitive: texts linked by a chain of pairs are all positives of each other.
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
