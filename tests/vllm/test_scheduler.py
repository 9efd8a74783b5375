"""Vectors stay correct and no slot leaks under preemption, aborts, prefix hits and refusals."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gircse_rag.backend import Request
from tests.vllm.engines import (
    BLOCK,
    add,
    assert_same,
    embed,
    engine,
    finish,
    reference,
    scheduler_of,
    some_requests,
    step,
)


def preempt(llm: Any, request_id: str) -> None:
    """Preempt a running request, as the scheduler does when it runs out of blocks."""
    scheduler = scheduler_of(llm)
    request = scheduler.requests[request_id]
    scheduler.running.remove(request)
    scheduler._preempt_request(request, time.monotonic())


def test_a_request_preempted_in_its_text_recomputes_the_last_block(llama: Path) -> None:
    """An earlier request cached every block of the text. The last block must still be computed, because the text's last
    hidden state makes the first soft token."""
    rng = random.Random(0)
    text = Request(tuple(rng.randrange(400) for _ in range(2 * BLOCK)), 5)
    other = Request(tuple(rng.randrange(400) for _ in range(2 * BLOCK)), 5)
    expected = reference(llama, [text])
    with engine(llama, max_num_batched_tokens=8, max_num_seqs=4) as llm:
        embed(llm, [text])
        embed(llm, [other])
        scheduler_of(llm).slots._free.rotate(1)  # the next slot still holds the other request's soft token
        preempted = add(llm, "preempted", text)
        step(llm)
        request = scheduler_of(llm).requests[preempted]
        assert BLOCK < request.num_computed_tokens < len(text.token_ids)  # it reused a block and is still in its text
        preempt(llm, preempted)
        assert_same([finish(llm)["preempted"]], expected)
        assert request.num_preemptions == 1


def test_a_cached_text_of_whole_blocks_gives_the_right_vector(llama: Path) -> None:
    rng = random.Random(1)
    text = Request(tuple(rng.randrange(400) for _ in range(3 * BLOCK)), 5)
    expected = reference(llama, [text])
    with engine(llama) as llm:
        for _ in range(3):
            assert_same(embed(llm, [text]), expected)


@pytest.mark.parametrize("where", ["first block", "last block", "first soft token", "last soft token"])
def test_preemption_at_any_position(llama: Path, where: str) -> None:
    rng = random.Random(2)
    text = Request(tuple(rng.randrange(400) for _ in range(2 * BLOCK + 3)), 6)
    length = len(text.token_ids)
    until = {"first block": 8, "last block": length - 1, "first soft token": length + 1, "last soft token": length + 5}
    expected = reference(llama, [text])
    with engine(llama, max_num_batched_tokens=8, max_num_seqs=4) as llm:
        name = add(llm, "preempted", text)
        while scheduler_of(llm).requests[name].num_computed_tokens < until[where]:
            step(llm)
        preempt(llm, name)
        assert_same([finish(llm)["preempted"]], expected)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_preemption_in_a_small_cache_does_not_change_vectors(llama: Path, asynchronous: bool) -> None:
    requests = some_requests(3, 60, longest=150)
    expected = reference(llama, requests)
    with engine(
        llama,
        num_gpu_blocks_override=10,
        max_model_len=256,
        scheduler_reserve_full_isl=False,  # otherwise a request waits until its whole text fits
        async_scheduling=asynchronous,
    ) as llm:
        scheduler = scheduler_of(llm)
        where = {"text": 0, "soft": 0}
        original = scheduler._preempt_request

        def count_preemption(request: Any, *args: Any, **kwargs: Any) -> None:
            inside = request.num_computed_tokens <= scheduler.slots.get(request.request_id).text
            where["text" if inside else "soft"] += 1
            original(request, *args, **kwargs)

        scheduler._preempt_request = count_preemption
        assert_same(embed(llm, requests), expected)
        assert where["soft"] > 0 and where["text"] > 0, where
        del scheduler._preempt_request


def test_aborted_requests_leave_nothing_behind(llama: Path) -> None:
    requests = some_requests(4, 40)
    expected = reference(llama, requests)
    rng = random.Random(4)
    with engine(llama, max_num_batched_tokens=32) as llm:
        names = {add(llm, f"{i}", request): f"{i}" for i, request in enumerate(requests)}
        kept = set(names.values())
        for name in rng.sample(sorted(names), 25):
            step(llm)
            if name in scheduler_of(llm).requests:
                kept.discard(names[name])
                llm.llm_engine.abort_request([names[name]])
        found = finish(llm)
        assert len(kept) < 35
        assert_same(embed(llm, requests), expected)
        assert_same([found[name] for name in found], [expected[int(name)] for name in found])
        assert set(found) <= kept


def test_requests_that_just_fit_the_window(llama: Path) -> None:
    rng = random.Random(5)
    texts = [Request(tuple(rng.randrange(400) for _ in range(length)), 128 - length) for length in (1, 31, 64, 127)]
    texts = [Request(text.token_ids, min(text.steps, 100)) for text in texts]
    fitting = Request(tuple(rng.randrange(400) for _ in range(123)), 5)
    with engine(llama, max_model_len=128, max_num_batched_tokens=64) as llm:
        assert_same(embed(llm, [fitting, *texts]), reference(llama, [fitting, *texts]), cosine=0.9999)


@pytest.mark.parametrize("length, steps", [(124, 5), (128, 1), (10, 0), (10, 257), (10, "five"), (10, True)])
def test_steps_that_do_not_fit_fail_alone(llama: Path, length: int, steps: Any) -> None:
    rng = random.Random(6)
    good = some_requests(6, 6, longest=50)
    bad = Request(tuple(rng.randrange(400) for _ in range(length)), steps)
    expected = reference(llama, good)
    with engine(llama, max_model_len=128, max_num_batched_tokens=64) as llm:
        for request in [*good[:3], bad, *good[3:]]:
            add(llm, "bad" if request is bad else f"{good.index(request)}", request)
        found = finish(llm)
        assert np.isnan(found.pop("bad")).all()
        assert_same([found[f"{i}"] for i in range(6)], expected)


def test_requests_wait_for_a_free_slot(llama: Path) -> None:
    requests = some_requests(7, 30, longest=40)
    with engine(llama, max_num_seqs=8) as llm:
        scheduler = scheduler_of(llm)
        for i in range(14):  # of the 16 slots
            scheduler.slots.reserve(f"stuck {i}", text=1, steps=1)
        assert_same(embed(llm, requests), reference(llama, requests))
        for i in range(14):
            scheduler.slots.release(f"stuck {i}")
