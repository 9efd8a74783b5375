"""Scheduler: which rows the next forward computes. Policy only: no tensors, no torch.

* Prefill and refinement rows share a forward of at most `token_budget` rows. A long prompt is computed in chunks.
* Running sequences go first, in order of admission. All output rows of a sequence (one, or a whole sweep) are computed
  in one forward, and room for them is reserved; the engine starts no sweep that would not fit. Prompts get the rest.
* Owners take turns at admission, so a bulk of documents does not hold up a query.
* With `shared_budget`, short owners (a query) and long ones (a bulk) take turns while both are under way: SHORT_TURNS
  forwards of the short ones alone, then one of the long ones alone, of at most `shared_budget` rows. A query needs a
  forward per step, and waits for the rows of others in between.
* When blocks run out, the sequence admitted last is preempted: it returns all its blocks and waits at the front, and
  later replays its prompt and soft tokens. The oldest sequence can take blocks from all others, and every sequence fits
  alone, so each one finishes.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Hashable
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

from gircse_rag.engine.block_manager import BlockManager, IntegrityError
from gircse_rag.engine.sequence import Sequence

SHORT_ROWS = 128
"""Maximum rows of all sequences of a short owner together: two or three queries."""
SHORT_TURNS = 6
"""Forwards of short owners between two of long ones, while both are under way: as many as a query takes at K=5."""
MAX_KEPT = 8
"""Maximum number of running sequences that long owners leave to short ones."""
_LINGER = 16
"""Number of forwards that stay short after the last short owner, so that its next query meets no long forward."""


class Chunk(NamedTuple):
    """Rows [sequence.num_cached, sequence.num_cached + num_rows) of one sequence, computed in one forward."""

    sequence: Sequence
    num_rows: int

    @property
    def is_last(self) -> bool:
        """Whether the forward reaches the sequence's last known row, so that hidden states come back."""
        return self.num_rows == self.sequence.num_pending


class Scheduler:
    """Decides which sequences run and which of their rows come next.

    Args:
        blocks: assigns KV blocks to sequences.
        token_budget: maximum rows per forward; must exceed max_running.
        max_running: maximum number of sequences that hold blocks at once.
        shared_budget: maximum rows per forward of long owners while there are short ones. None treats all owners alike.
    """

    def __init__(
        self, blocks: BlockManager, *, token_budget: int, max_running: int, shared_budget: int | None = None
    ) -> None:
        if token_budget <= max_running:
            raise ValueError(f"token_budget {token_budget} must exceed max_running {max_running}")
        self.blocks = blocks
        self.token_budget = token_budget
        self.max_running = max_running
        self.shared_budget = None if shared_budget is None else min(shared_budget, token_budget)
        self.num_preemptions = 0
        self.running: list[Sequence] = []
        self._preempted: deque[Sequence] = deque()
        self._waiting: OrderedDict[Hashable, deque[Sequence]] = OrderedDict()  # ordered by turn: the next owner first
        self._owned: dict[Hashable, _Owned] = {}  # owners with sequences under way
        self._kept = 0 if shared_budget is None else min(MAX_KEPT, max_running // 4)
        self._linger = self._turn = 0

    @property
    def num_waiting(self) -> int:
        """Number of sequences that wait for admission, new or preempted; they hold no blocks."""
        return len(self._preempted) + sum(map(len, self._waiting.values()))

    def waiting(self) -> list[Sequence]:
        """Sequences that wait for admission, new or preempted."""
        return [*self._preempted, *chain.from_iterable(self._waiting.values())]

    @property
    def has_work(self) -> bool:
        """Whether a forward is needed."""
        return bool(self.running or self._preempted or self._waiting)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence that fits the cache (`blocks.fits`). It is admitted when its owner's turn comes."""
        owned = self._owned.setdefault(sequence.owner, _Owned())
        owned.sequences += 1
        owned.rows += sequence.max_rows
        self._waiting.setdefault(sequence.owner, deque()).append(sequence)

    def schedule(self) -> list[Chunk]:
        """Choose the rows of the next forward and allocate their blocks; empty only if there is no work."""
        if self.shared_budget is None:
            return self._fill(self.token_budget, None)
        kinds = {owned.rows <= SHORT_ROWS for owned in self._owned.values()}
        if len(kinds) < 2:
            self._turn = 0
            self._linger = max(0, self._linger - 1)
            lingers = False in kinds and self._linger
            return self._fill(self.shared_budget if lingers else self.token_budget, False not in kinds)
        self._linger = _LINGER
        self._turn = (self._turn + 1) % (SHORT_TURNS + 1)
        if self._turn and (chunks := self._fill(self.token_budget, True)):
            return chunks
        return self._fill(self.shared_budget, False) or self._fill(self.token_budget, True)

    def _fill(self, budget: int, short: bool | None) -> list[Chunk]:
        """Choose rows of short owners (True), of long ones (False) or of all (None).

        At most `budget` rows, or the output rows of the first sequence if those are more.
        """
        members = deque(sequence for sequence in self.running if self._is(sequence.owner, short))
        reserved = sum(sequence.num_outputs for sequence in members)
        closed = False  # to sequences that wait for admission
        while len(members) > 1 and reserved > budget:
            reserved -= members.pop().num_outputs
            closed = True
        budget = max(budget, reserved)
        chunks: list[Chunk] = []
        while members:
            sequence = members.popleft()
            reserved -= sequence.num_outputs
            num_rows = _num_rows(sequence, budget - reserved)
            while not self.blocks.grow(sequence, sequence.num_cached + num_rows):
                closed = True
                last = self.running[-1]
                if members and members[-1] is last:
                    reserved -= members.pop().num_outputs
                self._preempt(last)
                if last is sequence:
                    break
            else:
                budget -= self._add_chunk(chunks, sequence, num_rows)
        limit = self.max_running - (self._kept if short is False else 0)
        while not closed and budget and len(self.running) < limit:
            candidate = self._admit_next(short)
            if candidate is None:
                break
            if not chunks:
                budget = max(budget, candidate.num_outputs)
            num_rows = _num_rows(candidate, budget)
            if not num_rows:  # it starts with a later forward
                break
            if not self.blocks.grow(candidate, candidate.num_cached + num_rows):
                raise IntegrityError("a sequence was admitted without enough free blocks")
            budget -= self._add_chunk(chunks, candidate, num_rows)
        return chunks

    def finish(self, sequence: Sequence, *, forget: bool = False) -> None:
        """Remove a running sequence and release its blocks (`forget`: see BlockManager.release)."""
        self.running.remove(sequence)
        self.blocks.release(sequence, forget=forget)
        if owned := self._owned.get(sequence.owner):
            owned.sequences -= 1
            if not owned.sequences:
                del self._owned[sequence.owner]

    def cancel(self, owner: Hashable) -> None:
        """Drop all sequences of `owner` and free their blocks at once."""
        for sequence in [sequence for sequence in self.running if sequence.owner == owner]:
            self.finish(sequence)
        self._preempted = deque(sequence for sequence in self._preempted if sequence.owner != owner)
        self._waiting.pop(owner, None)
        self._owned.pop(owner, None)

    def drain(self) -> list[Sequence]:
        """Remove all sequences and reset the blocks: after a failed or interrupted forward nothing cached is valid."""
        sequences = list(dict.fromkeys([*self.running, *self.waiting()]))  # an interrupted move leaves one in both
        self.blocks.reset()
        self.running.clear()
        self._preempted.clear()
        self._waiting.clear()
        self._owned.clear()
        return sequences

    def check_integrity(self) -> None:
        """Check that blocks and sequences agree.

        Raises:
            IntegrityError: they contradict each other.
        """
        self.blocks.check_integrity(self.running)
        if len(self.running) > self.max_running:
            raise IntegrityError(f"{len(self.running)} sequences are running, but at most {self.max_running} may")
        if any(sequence.block_table or sequence.num_cached for sequence in self.waiting()):
            raise IntegrityError("a waiting sequence holds blocks")
        counts = Counter(sequence.owner for sequence in [*self.running, *self.waiting()])
        if counts != {owner: owned.sequences for owner, owned in self._owned.items()}:
            raise IntegrityError("an owner's number of sequences is wrong")

    def _is(self, owner: Hashable, short: bool | None) -> bool:
        """Whether an owner is short (True) or long (False); always with None."""
        return short is None or (self._owned[owner].rows <= SHORT_ROWS) is short

    def _add_chunk(self, chunks: list[Chunk], sequence: Sequence, num_rows: int) -> int:
        chunks.append(Chunk(sequence, num_rows))
        self.blocks.register(sequence, sequence.num_cached + num_rows)
        return num_rows

    def _preempt(self, sequence: Sequence) -> None:
        self.num_preemptions += 1
        self.blocks.release(sequence)
        del sequence.soft[len(sequence.states) :]  # drafts of a sweep are not worth replaying
        self._preempted.appendleft(sequence)  # added before it is removed elsewhere: an interrupt must not lose it
        self.running.pop()

    def _admit_next(self, short: bool | None) -> Sequence | None:
        if self._preempted:
            owner, queue = self._preempted[0].owner, self._preempted
            if not self._is(owner, short):
                return None
        else:
            turns = (turn for turn in self._waiting.items() if self._is(turn[0], short))
            owner, queue = next(turns, (None, self._preempted))
        if not queue or not self.blocks.admit(queue[0]):
            return None  # no other sequence overtakes, so blocks become free for this one
        sequence = queue[0]
        self.running.append(sequence)  # again added before it is removed
        queue.popleft()
        if queue is not self._preempted:
            self._waiting.move_to_end(owner)
            if not queue:
                del self._waiting[owner]
        return sequence


@dataclass(slots=True)
class _Owned:
    """An owner's sequences under way, and the rows of all that it has added since it had none."""

    sequences: int = 0
    rows: int = 0


def _num_rows(sequence: Sequence, budget: int) -> int:
    """Rows to compute now: as many as fit, but all output rows together or none of them."""
    pending = sequence.num_pending
    return pending if pending <= budget else min(budget, pending - sequence.num_outputs)
