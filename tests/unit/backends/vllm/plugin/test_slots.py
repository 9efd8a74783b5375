"""Arithmetic of the vLLM plugin's slots, handles and chunks. vLLM is not needed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gircse_rag.backends.vllm.plugin.slots import LARGEST_ID, Reservation, SlotTable

V = 400


def test_handles_lie_above_the_vocabulary_and_encode_their_slot() -> None:
    table = SlotTable(V, 6)
    for name, steps in (("a", 3), ("b", 20), ("c", 1)):
        held = table.reserve(name, text=9, steps=steps)
        assert held is not None and table.get(name) is held
        assert len(held.handles) == steps
        assert all(V <= handle <= LARGEST_ID and (handle - V) % 6 == held.slot for handle in held.handles)


def test_a_slot_is_free_again_only_after_its_release() -> None:
    table = SlotTable(V, 2)
    first, second = table.reserve("a", text=1, steps=1), table.reserve("b", text=1, steps=1)
    assert first and second and first.slot != second.slot
    assert table.reserve("c", text=1, steps=1) is None
    with pytest.raises(ValueError, match="holds a slot already"):
        table.reserve("a", text=1, steps=1)
    table.release("a")
    table.release("a")
    third = table.reserve("c", text=1, steps=1)
    assert third and third.slot == first.slot and len(table) == 2


def test_ids_wrap_around_before_they_overflow() -> None:
    slots = (LARGEST_ID - V) // 1024
    table = SlotTable(V, slots)
    for _ in range(1000):
        held = table.reserve("a", text=1, steps=256)
        assert held and max(held.handles) <= LARGEST_ID
        table.release("a")
    with pytest.raises(ValueError, match="too few ids"):
        SlotTable(V, LARGEST_ID // 100)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 7), st.booleans(), st.integers(1, 20)), max_size=60), st.integers(1, 5))
def test_no_two_requests_share_a_slot_or_a_handle(moves: list[tuple[int, bool, int]], slots: int) -> None:
    held: dict[str, Any] = {}
    seen: set[Any] = set()
    table = SlotTable(V, slots)
    for name, leave, steps in moves:
        key = str(name)
        if leave:
            table.release(key)
            held.pop(key, None)
        elif key not in held and (reservation := table.reserve(key, text=1, steps=steps)):
            assert reservation.slot not in {other.slot for other in held.values()}
            assert seen.isdisjoint(reservation.handles)
            seen.update(reservation.handles)
            held[key] = reservation
        assert len(table) == len(held) <= slots


@given(st.integers(1, 300), st.integers(1, 20), st.lists(st.integers(1, 50), min_size=1), st.integers(0, 400))
def test_chunks_end_with_the_text_and_then_hold_one_handle_each(
    text: int, steps: int, budgets: list[int], computed: int
) -> None:
    held = Reservation(0, text, steps, range(V, V + steps))
    computed %= text
    for turn in range(text + steps):
        limit = min(budgets[turn % len(budgets)], text + steps - computed)
        size = held.chunk(computed, limit)
        assert 1 <= size <= limit
        assert computed + size <= text or (computed >= text and size == 1)
        computed += size
        if computed == text + steps:
            break
    assert computed == text + steps


@given(st.integers(1, 300), st.integers(0, 400), st.sampled_from([1, 16, 32, 128]))
def test_a_prefix_hit_leaves_a_text_token_to_compute(text: int, blocks: int, block_size: int) -> None:
    cached = blocks * block_size
    usable = Reservation(0, text, 5, range(V, V + 5)).usable_hit(cached, block_size)
    assert usable <= min(cached, text - 1) and usable % block_size == 0
    assert usable == cached or usable + block_size >= text  # no usable block is wasted
