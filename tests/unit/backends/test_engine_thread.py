"""The paged backend as a server uses it: an engine thread, cancelled calls, and counts."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from gircse_rag.backend import Request
from gircse_rag.backends.paged import PagedBackend
from gircse_rag.backends.reference import ReferenceBackend
from gircse_rag.errors import GircseError
from tests import tiny
from tests.unit.backends.test_paged import assert_idle, assert_same, backend, requests


def wait_until(condition: Any, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition never came true"
        time.sleep(0.01)


def wait_idle(paged: PagedBackend) -> None:
    wait_until(lambda: not paged._engine.scheduler.has_work)
    assert_idle(paged)


def test_only_the_engine_thread_runs_forwards(monkeypatch: pytest.MonkeyPatch) -> None:
    network = tiny.model()
    paged = backend(network)
    forward, drivers = paged._engine.runner.forward, set()

    def observed(chunks: Any) -> Any:
        drivers.add(threading.current_thread().name)
        return forward(chunks)

    monkeypatch.setattr(paged._engine.runner, "forward", observed)
    paged.start_engine_thread()
    batches = [requests(seed, number=6) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda batch: dict(paged.refine(batch)), batches))
    reference = ReferenceBackend(network)
    for batch, outcomes in zip(batches, found, strict=True):
        assert_same(outcomes, dict(reference.refine(batch)))
    assert drivers == {"gircse-engine"}
    wait_idle(paged)
    paged.close()


@pytest.mark.parametrize("engine_thread", [True, False])
def test_a_cancelled_call_ends_and_frees_its_blocks(engine_thread: bool) -> None:
    paged = backend(tiny.model())
    if engine_thread:
        paged.start_engine_thread()
    cancelled = threading.Event()
    endless = (Request((1 + number % 300, 2, 3), 200) for number in range(10**9))
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(lambda: list(paged.refine(endless, cancelled=cancelled)))
        wait_until(lambda: paged.stats.running > 0)
        cancelled.set()
        with pytest.raises(GircseError, match="cancelled"):
            call.result(30)
    assert len(dict(paged.refine([Request((5, 6), 3)]))) == 1
    wait_idle(paged)
    paged.close()


def test_a_failing_forward_does_not_end_the_engine_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    paged = backend(tiny.model())
    paged.start_engine_thread()
    with monkeypatch.context() as patch:
        patch.setattr(paged._engine.runner, "forward", lambda chunks: 1 / 0)
        (outcome,) = dict(paged.refine([Request((5, 6), 3)])).values()
        assert isinstance(outcome, GircseError)
    batch = [Request((5, 6), 3)]
    assert_same(dict(paged.refine(batch)), dict(ReferenceBackend(tiny.model()).refine(batch)))
    wait_idle(paged)
    paged.close()


def test_closing_ends_waiting_calls_and_the_engine_thread() -> None:
    paged = backend(tiny.model())
    paged.start_engine_thread()
    endless = (Request((1 + number % 300, 2, 3), 200) for number in range(10**9))
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(lambda: list(paged.refine(endless)))
        wait_until(lambda: paged.stats.running > 0)
        paged.close()
        with pytest.raises(GircseError, match="closed"):
            call.result(30)
    wait_until(lambda: not any(thread.name == "gircse-engine" for thread in threading.enumerate()))
    assert not hasattr(paged, "_engine")


def test_stats_count_rows_hits_and_blocks() -> None:
    paged = backend(tiny.model())
    assert paged.stats.steps == paged.stats.rows == paged.stats.used_blocks == 0 < paged.stats.num_blocks
    prompt = tuple(range(1, 100))
    for _ in range(2):
        list(paged.refine([Request(prompt, 3)]))
    stats = paged.stats
    assert stats.rows + stats.prefix_hits >= 2 * (len(prompt) + 2)
    assert 0 < stats.prefix_hits < len(prompt)
    assert (stats.running, stats.waiting, stats.used_blocks) == (0, 0, 0)
    assert stats.steps >= 2
    paged.close()
    assert paged.stats.num_blocks == 0
