"""Scheduler: which rows the next forward computes. Policy only: no tensors, no torch.

* Prefill and refinement rows share a forward of at most `token_budget` rows. A long prompt is computed in chunks.
* Running sequences go first, in the order of their admission, and each is sure of its output rows (one, or a whole
  sweep: the engine starts none that would not fit), all in one forward; the rest is for prompts.
* Owners take turns in being admitted, so that a bulk of documents does not hold up a query.
* When blocks run out, the sequence admitted last gives all of its back and waits at the front; it replays its prompt
  and its soft tokens later. The oldest can take from everybody, and every sequence fits alone, so each one finishes.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable
from itertools import chain
from typing import NamedTuple

from gircse_rag.engine.block_manager import BlockManager, IntegrityError
from gircse_rag.engine.sequence import Sequence


class Chunk(NamedTuple):
    """Rows [sequence.num_cached, sequence.num_cached + num_rows) of one sequence, computed in one forward."""

    sequence: Sequence
    num_rows: int

    @property
    def is_last(self) -> bool:
        """Whether the forward reaches the sequence's last known row, so that hidden states come back."""
        return self.num_rows == self.sequence.num_pending


class Scheduler:
    """Orders sequences.

    Args:
        blocks: who owns which KV block.
        token_budget: rows a forward at most; must exceed max_running.
        max_running: sequences that hold blocks at once.
    """

    def __init__(self, blocks: BlockManager, *, token_budget: int, max_running: int) -> None:
        if token_budget <= max_running:
            raise ValueError(f"token_budget {token_budget} must exceed max_running {max_running}")
        self.blocks = blocks
        self.token_budget = token_budget
        self.max_running = max_running
        self.num_preemptions = 0
        self.running: list[Sequence] = []
        self._preempted: deque[Sequence] = deque()
        self._waiting: OrderedDict[Hashable, deque[Sequence]] = OrderedDict()  # the next owner's turn is first

    @property
    def num_waiting(self) -> int:
        """Sequences that hold no blocks yet, or no longer."""
        return len(self._preempted) + sum(map(len, self._waiting.values()))

    def waiting(self) -> list[Sequence]:
        """Those sequences."""
        return [*self._preempted, *chain.from_iterable(self._waiting.values())]

    @property
    def has_work(self) -> bool:
        """Whether a forward is needed."""
        return bool(self.running or self._preempted or self._waiting)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence that fits the cache (`blocks.fits`); it is admitted when its owner's turn comes."""
        self._waiting.setdefault(sequence.owner, deque()).append(sequence)

    def schedule(self) -> list[Chunk]:
        """The rows of the next forward; empty only if there is no work. Blocks for them are allocated."""
        chunks: list[Chunk] = []
        budget = self.token_budget
        behind = sum(sequence.num_outputs for sequence in self.running)
        position = 0
        preempted = False
        while position < len(self.running):
            sequence = self.running[position]
            behind -= sequence.num_outputs
            num_rows = _num_rows(sequence, budget - behind)
            while not self.blocks.grow(sequence, sequence.num_cached + num_rows):
                preempted = True
                behind -= self.running[-1].num_outputs if len(self.running) > position + 1 else 0
                self._preempt(self.running[-1])
                if position == len(self.running):  # it was the last itself
                    break
            else:
                budget -= self._plan(chunks, sequence, num_rows)
                position += 1
        while not preempted and budget and len(self.running) < self.max_running:
            sequence_or_none = self._admit_next()
            if sequence_or_none is None:
                break
            num_rows = _num_rows(sequence_or_none, budget)
            if not num_rows:  # its turn comes with the next forward
                break
            if not self.blocks.grow(sequence_or_none, sequence_or_none.num_cached + num_rows):
                raise IntegrityError("a sequence was admitted for which there are no blocks")
            budget -= self._plan(chunks, sequence_or_none, num_rows)
        return chunks

    def finish(self, sequence: Sequence, *, forget: bool = False) -> None:
        """Take a running sequence out and release its blocks (see BlockManager.release)."""
        self.running.remove(sequence)
        self.blocks.release(sequence, forget=forget)

    def cancel(self, owner: Hashable) -> None:
        """Drop everything that `owner` asked for; its blocks are free at once."""
        for sequence in [sequence for sequence in self.running if sequence.owner == owner]:
            self.finish(sequence)
        self._preempted = deque(sequence for sequence in self._preempted if sequence.owner != owner)
        self._waiting.pop(owner, None)

    def drain(self) -> list[Sequence]:
        """Take out everything, and trust neither the cache nor who holds it: a forward failed, or was interrupted."""
        sequences = list(dict.fromkeys([*self.running, *self.waiting()]))  # one on the move is in both
        self.blocks.reset()
        self.running.clear()
        self._preempted.clear()
        self._waiting.clear()
        return sequences

    def check_integrity(self) -> None:
        """Check that blocks and sequences agree.

        Raises:
            IntegrityError: they do not.
        """
        self.blocks.check_integrity(self.running)
        if len(self.running) > self.max_running:
            raise IntegrityError(f"{len(self.running)} sequences run, {self.max_running} may")
        if any(sequence.block_table or sequence.num_cached for sequence in self.waiting()):
            raise IntegrityError("a waiting sequence holds blocks")

    def _plan(self, chunks: list[Chunk], sequence: Sequence, num_rows: int) -> int:
        chunks.append(Chunk(sequence, num_rows))
        self.blocks.register(sequence, sequence.num_cached + num_rows)
        return num_rows

    def _preempt(self, sequence: Sequence) -> None:
        self.num_preemptions += 1
        self.blocks.release(sequence)
        del sequence.soft[len(sequence.states) :]  # a parallel sweep's drafts are not worth replaying
        self._preempted.appendleft(sequence)  # before it is taken out elsewhere: an interrupt must not lose it
        self.running.pop()

    def _admit_next(self) -> Sequence | None:
        if self._preempted:
            sequence = self._preempted[0]
            if not self.blocks.admit(sequence):
                return None
            self.running.append(sequence)  # likewise before it is taken out
            self._preempted.popleft()
        elif self._waiting:
            owner, queue = next(iter(self._waiting.items()))
            sequence = queue[0]
            if not self.blocks.admit(sequence):
                return None  # nobody overtakes: the blocks it needs come free
            self.running.append(sequence)
            queue.popleft()
            if queue:
                self._waiting.move_to_end(owner)
            else:
                del self._waiting[owner]
        else:
            return None
        return sequence


def _num_rows(sequence: Sequence, budget: int) -> int:
    """As many pending rows as fit, but never a part of the output rows: their hidden states come from one forward."""
    pending = sequence.num_pending
    return pending if pending <= budget else min(budget, pending - sequence.num_outputs)
