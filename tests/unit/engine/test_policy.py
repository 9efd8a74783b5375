"""Scheduler and block manager under random arrivals, lengths, steps, cancellations and shortages; without torch."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from gircse_rag.engine.block_manager import BlockManager, IntegrityError
from gircse_rag.engine.scheduler import Chunk, Scheduler
from gircse_rag.engine.sequence import Sequence

NUM_BLOCKS, BLOCK_SIZE = 17, 4  # 16 blocks to hand out: 64 rows


def commit(scheduler: Scheduler, chunks: list[Chunk]) -> list[Sequence]:
    """Record a forward as the engine does, with strings for tensors; returns the finished sequences."""
    done = []
    ended = [chunk.sequence for chunk in chunks if chunk.is_last]
    for sequence, num_rows in chunks:
        sequence.num_cached += num_rows
    for sequence in ended:
        swept = sequence.num_outputs > 1
        sequence.states.append(f"h{len(sequence.states)}")
        final = len(sequence.states)
        if sequence.is_refined:
            scheduler.finish(sequence)
            done.append(sequence)
        elif swept:
            sequence.soft[final - 1 :] = [f"{soft}'" for soft in sequence.soft[final - 1 :]]
            sequence.num_cached = sequence.num_tokens + final - 1
        else:
            sequence.soft.append(f"s{len(sequence.soft) + 1}")
    return done


def prompt(length: int, family: int) -> tuple[int, ...]:
    """A prompt that depends on its family and length only: prompts of one family share prefixes."""
    return tuple(family * 1000 + i for i in range(length))


class EngineMachine(RuleBasedStateMachine):
    """Arrivals, forwards and cancellations in any order; the invariants are checked after each."""

    @initialize(
        token_budget=st.integers(5, 40),
        max_running=st.integers(1, 4),
        caching=st.booleans(),
        num_blocks=st.integers(9, NUM_BLOCKS),
        shared_budget=st.none() | st.integers(1, 40),
    )
    def start(
        self, token_budget: int, max_running: int, caching: bool, num_blocks: int, shared_budget: int | None
    ) -> None:
        self.blocks = BlockManager(num_blocks, BLOCK_SIZE, caching=caching)
        self.scheduler = Scheduler(
            self.blocks, token_budget=token_budget, max_running=max_running, shared_budget=shared_budget
        )
        self.open: set[Sequence] = set()
        self.written: dict[int, list[object]] = {}

    @rule(
        length=st.integers(1, 24),
        family=st.integers(0, 2),
        steps=st.integers(1, 8),
        owner=st.integers(0, 2),
        drafted=st.booleans(),
    )
    def arrive(self, length: int, family: int, steps: int, owner: int, drafted: bool) -> None:
        sequence = Sequence(prompt(length, family), steps, owner=owner)
        assert self.blocks.fits(sequence.max_rows)
        rows = sum(other.num_outputs for other in self.open) + sequence.num_outputs + steps
        if drafted and rows <= self.scheduler.token_budget - self.scheduler.max_running:  # the engine's limit
            sequence.soft = [f"draft{i}" for i in range(steps)]
        self.scheduler.add(sequence)
        self.open.add(sequence)

    @rule()
    def forward(self) -> None:
        chunks = self.scheduler.schedule()
        assert bool(chunks) == bool(self.open)
        assert sum(chunk.num_rows for chunk in chunks) <= self.scheduler.token_budget
        assert all(chunk.num_rows > 0 for chunk in chunks)
        left = {chunk.sequence: chunk.sequence.num_pending - chunk.num_rows for chunk in chunks}
        assert all(not rows or rows >= sequence.num_outputs for sequence, rows in left.items()), "split output rows"
        self.write(chunks)
        self.open -= set(commit(self.scheduler, chunks))

    def write(self, chunks: list[Chunk]) -> None:
        """Model the cache: every row of the forward is written, then every sequence must read back its own history."""
        for sequence, num_rows in chunks:
            rows: list[object] = [*sequence.token_ids, *((id(sequence), s) for s in sequence.soft)]
            for position in range(sequence.num_cached, sequence.num_cached + num_rows):
                block = sequence.block_table[position // BLOCK_SIZE]
                assert block, "the zero block was written to"
                self.written.setdefault(block, [None] * BLOCK_SIZE)[position % BLOCK_SIZE] = rows[position]
        for sequence, num_rows in chunks:
            rows = [*sequence.token_ids, *((id(sequence), s) for s in sequence.soft)]
            for position in range(sequence.num_cached + num_rows):
                block = sequence.block_table[position // BLOCK_SIZE]
                assert self.written[block][position % BLOCK_SIZE] == rows[position]

    @rule(owner=st.integers(0, 2))
    def cancel(self, owner: int) -> None:
        self.scheduler.cancel(owner)
        self.open = {sequence for sequence in self.open if sequence.owner != owner}

    @rule()
    def fail(self) -> None:
        assert set(self.scheduler.drain()) == self.open
        self.open = set()
        self.written.clear()

    @invariant()
    def state_is_consistent(self) -> None:
        if hasattr(self, "scheduler"):
            self.scheduler.check_integrity()
            for sequence in self.scheduler.waiting():
                if sequence.states:  # preempted
                    assert len(sequence.soft) == len(sequence.states), "drafts must not be replayed"

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        for _ in range(10_000):  # no more arrivals: every sequence must finish
            if not self.open:
                break
            self.forward()
            self.state_is_consistent()
        assert not self.open, "a sequence never finished"
        assert not self.scheduler.has_work
        assert self.blocks.num_available == self.blocks.num_blocks - 1, "a block leaked"


EngineMachine.TestCase.settings = settings(
    max_examples=120, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestEngineMachine = EngineMachine.TestCase


def run(scheduler: Scheduler) -> list[Sequence]:
    order = []
    while scheduler.has_work:
        order += commit(scheduler, scheduler.schedule())
        scheduler.check_integrity()
    return order


def ask_during_a_bulk(shared_budget: int | None, bulk: int = 40) -> tuple[list[Sequence], int]:
    """A query arrives while a bulk runs. Returns the order of ends, and the rows computed until its end."""
    scheduler = Scheduler(
        BlockManager(4000, BLOCK_SIZE), token_budget=512, max_running=256, shared_budget=shared_budget
    )
    for number in range(bulk):
        scheduler.add(Sequence(prompt(150, number), 5, owner="bulk"))
    order = commit(scheduler, scheduler.schedule())
    query = Sequence(prompt(30, 999), 5, owner="query")
    scheduler.add(query)
    rows = 0
    while query not in order:
        chunks = scheduler.schedule()
        rows += sum(chunk.num_rows for chunk in chunks)
        order += commit(scheduler, chunks)
        scheduler.check_integrity()
    return order + run(scheduler), rows


def test_a_query_waits_for_few_rows_of_a_bulk() -> None:
    _, alike = ask_during_a_bulk(None)
    order, rows = ask_during_a_bulk(96)
    assert alike >= 6 * 500  # six forwards: the prompt, and five steps
    assert rows <= 30 + 5 + 2 * 96  # its own rows, and at most two turns of the bulk
    assert len(order) == 41


def test_a_query_finds_room_among_many_documents() -> None:
    scheduler = Scheduler(BlockManager(4000, BLOCK_SIZE), token_budget=512, max_running=40, shared_budget=96)
    for number in range(400):
        scheduler.add(Sequence(prompt(20, number), 200, owner="bulk"))
    for _ in range(10):
        commit(scheduler, scheduler.schedule())
    scheduler.add(query := Sequence(prompt(30, 999), 5, owner="query"))
    for _ in range(2):
        chunks = scheduler.schedule()
        commit(scheduler, chunks)
        if query in [chunk.sequence for chunk in chunks]:
            return
    raise AssertionError("the query is not admitted")


def test_a_bulk_alone_has_the_whole_budget_again_after_a_while() -> None:
    scheduler = Scheduler(BlockManager(4000, BLOCK_SIZE), token_budget=512, max_running=256, shared_budget=96)
    scheduler.add(Sequence(prompt(30, 999), 5, owner="query"))
    for number in range(60):
        scheduler.add(Sequence(prompt(150, number), 5, owner="bulk"))
    sizes = []
    while scheduler.has_work:
        chunks = scheduler.schedule()
        sizes.append(sum(chunk.num_rows for chunk in chunks))
        commit(scheduler, chunks)
    assert max(sizes[:20]) <= 96 and max(sizes) > 500


def test_queries_without_end_do_not_starve_a_bulk() -> None:
    scheduler = Scheduler(BlockManager(4000, BLOCK_SIZE), token_budget=512, max_running=256, shared_budget=96)
    documents = [Sequence(prompt(150, number), 5, owner="bulk") for number in range(4)]
    for document in documents:
        scheduler.add(document)
    order: list[Sequence] = []
    for number in range(2000):
        if set(documents) <= set(order):
            return
        while scheduler.num_waiting < 20:
            family = 100 + number + scheduler.num_waiting
            scheduler.add(Sequence(prompt(90, family), 5, owner=f"query {number} {scheduler.num_waiting}"))
        order += commit(scheduler, scheduler.schedule())
    raise AssertionError("the bulk never ends")


def test_policy_imports_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None;"
        "import gircse_rag.engine.scheduler, gircse_rag.engine.block_manager, gircse_rag.engine.sequence"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("length", "hits"), [(1, 0), (4, 0), (5, 4), (8, 4), (9, 8)])
def test_a_prefix_hit_leaves_the_last_prompt_token_to_compute(length: int, hits: int) -> None:
    scheduler = Scheduler(BlockManager(NUM_BLOCKS, BLOCK_SIZE), token_budget=40, max_running=4)
    scheduler.add(Sequence(prompt(12, 0), 2))
    run(scheduler)
    scheduler.add(Sequence(prompt(length, 0), 2))
    (chunk,) = scheduler.schedule()
    assert (chunk.sequence.num_cached, chunk.num_rows) == (hits, length - hits)


def test_sequences_of_one_forward_share_their_prefix() -> None:
    scheduler = Scheduler(BlockManager(NUM_BLOCKS, BLOCK_SIZE), token_budget=40, max_running=4)
    for tail in range(3):
        scheduler.add(Sequence((*prompt(8, 0), 7000 + tail), 1))
    assert [chunk.num_rows for chunk in scheduler.schedule()] == [9, 1, 1]


def test_blocks_with_soft_rows_are_never_shared() -> None:
    blocks = BlockManager(NUM_BLOCKS, BLOCK_SIZE)
    scheduler = Scheduler(blocks, token_budget=40, max_running=4)
    scheduler.add(Sequence(prompt(6, 0), 6))
    run(scheduler)
    again = Sequence(prompt(14, 0), 1)
    assert blocks.admit(again)
    assert again.num_cached == 4


def test_different_salts_never_share_prefixes() -> None:
    first, second = Sequence(prompt(9, 0), 1), Sequence(prompt(9, 0), 1)
    a, b = BlockManager(NUM_BLOCKS, BLOCK_SIZE, salt="a"), BlockManager(NUM_BLOCKS, BLOCK_SIZE, salt="b")
    for manager, sequence in ((a, first), (b, second)):
        manager.admit(sequence)
        manager.grow(sequence, 9)
        manager.register(sequence, 9)
    assert not set(first.prefix_keys or ()) & set(second.prefix_keys or ())


def test_the_least_recently_used_prefix_is_evicted_first() -> None:
    blocks = BlockManager(7, BLOCK_SIZE)  # three blocks per sequence, two of which hold a prefix
    scheduler = Scheduler(blocks, token_budget=40, max_running=1)
    for family in (0, 1, 0, 2):  # family 0 is used again, so family 2 evicts the tail of family 1
        scheduler.add(Sequence(prompt(11, family), 1))
        run(scheduler)
    held = {}
    for family in (0, 1):
        sequence = Sequence(prompt(11, family), 1)
        blocks.admit(sequence)
        held[family] = sequence.num_cached
        blocks.release(sequence)
    assert held == {0: 8, 1: 4}


def test_a_preempted_sequence_replays_its_soft_tokens() -> None:
    scheduler = Scheduler(BlockManager(8, BLOCK_SIZE, caching=False), token_budget=64, max_running=2)  # 28 rows
    old, young = Sequence(prompt(10, 0), 8), Sequence(prompt(10, 1), 8)
    scheduler.add(old)
    scheduler.add(young)
    while not scheduler.num_preemptions:
        commit(scheduler, scheduler.schedule())
    assert (young.num_cached, young.block_table) == (0, [])
    soft, states = list(young.soft), list(young.states)
    assert len(soft) == len(states) > 1
    while not young.block_table:
        chunks = scheduler.schedule()
        commit(scheduler, chunks)
    assert chunks[-1] == Chunk(young, 10 + len(soft))
    assert young.soft[: len(soft)] == soft
    assert len(young.states) == len(states) + 1
    assert run(scheduler)[-1] is young


def test_a_long_prompt_is_computed_in_chunks_beside_refinement() -> None:
    scheduler = Scheduler(BlockManager(60, BLOCK_SIZE), token_budget=16, max_running=4)
    scheduler.add(Sequence(prompt(3, 0), 8))
    commit(scheduler, scheduler.schedule())
    scheduler.add(Sequence(prompt(100, 1), 1))
    assert [chunk.num_rows for chunk in scheduler.schedule()] == [1, 15]


def test_owners_take_turns() -> None:
    scheduler = Scheduler(BlockManager(60, BLOCK_SIZE), token_budget=6, max_running=1)
    for number in range(20):
        scheduler.add(Sequence(prompt(4, number), 1, owner="bulk"))
    scheduler.add(Sequence(prompt(4, 50), 1, owner="query"))
    order = [sequence.owner for sequence in run(scheduler)]
    assert order.index("query") <= 1


@given(st.lists(st.tuples(st.integers(1, 24), st.integers(1, 8)), min_size=1, max_size=12), st.integers(5, 30))
@settings(max_examples=100, deadline=None)
def test_overtaking_is_bounded(shapes: list[tuple[int, int]], token_budget: int) -> None:
    scheduler = Scheduler(BlockManager(9, BLOCK_SIZE), token_budget=token_budget, max_running=3)
    sequences = [Sequence(prompt(n, i), k) for i, (n, k) in enumerate(shapes)]
    for sequence in sequences:
        scheduler.add(sequence)
    order = run(scheduler)
    assert sorted(map(id, order)) == sorted(map(id, sequences))
    position = {sequence: i for i, sequence in enumerate(order)}
    for i, sequence in enumerate(sequences):
        overtakers = sum(position[other] < position[sequence] for other in sequences[i + 1 :])
        assert overtakers <= 2 * sequence.max_rows  # only while it runs, or after it was preempted


def test_every_broken_invariant_is_detected() -> None:
    def check_damaged(damage: str) -> None:
        blocks = BlockManager(NUM_BLOCKS, BLOCK_SIZE)
        a, b = Sequence(prompt(9, 0), 2), Sequence(prompt(9, 1), 2)
        for sequence in (a, b):
            blocks.admit(sequence)
            blocks.grow(sequence, 11)
            blocks.register(sequence, 9)
        blocks.check_integrity([a, b])
        if damage == "leak":
            a.block_table.pop()
        elif damage == "shared for writing":
            b.block_table[-1] = a.block_table[-1]
        elif damage == "twice in one table":
            a.block_table[1] = a.block_table[0]
        elif damage == "freed twice":
            blocks.release(a)
            blocks._free.append(blocks._free[-1])
            a.block_table = []
        elif damage == "freed in use":
            blocks._free.append(a.block_table[-1])
        elif damage == "soft row shared":
            blocks._key_of[a.block_table[-1]] = b"key"
            blocks._block_of[b"key"] = a.block_table[-1]
        elif damage == "rows without blocks":
            a.num_cached = 100
        blocks.check_integrity([a, b])

    for damage in (
        "leak",
        "shared for writing",
        "twice in one table",
        "freed twice",
        "freed in use",
        "soft row shared",
        "rows without blocks",
    ):
        with pytest.raises(IntegrityError):
            check_damaged(damage)


def test_a_budget_that_could_starve_prefill_is_refused() -> None:
    with pytest.raises(ValueError, match="must exceed max_running"):
        Scheduler(BlockManager(9, BLOCK_SIZE), token_budget=4, max_running=4)
