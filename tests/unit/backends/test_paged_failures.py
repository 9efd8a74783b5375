"""Failures of the paged backend: errors, interrupts, closing and forks lose no text."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import pytest
import torch

from gircse_rag.backend import Refinement, Request
from gircse_rag.backends import paged as module
from gircse_rag.backends.paged import PagedBackend, _Call
from gircse_rag.backends.reference import ReferenceBackend
from gircse_rag.engine import engine
from gircse_rag.engine.kv_cache import bytes_per_block
from gircse_rag.engine.sequence import Sequence
from gircse_rag.errors import GircseError
from gircse_rag.refinement import pool
from tests import tiny
from tests.processes import run_in_fork
from tests.unit.backends.test_paged import SPEC, assert_idle


def run_within(seconds: float, work: Callable[[], Any]) -> Any:
    """Return or raise the outcome of `work`; fail if it takes longer."""
    results: list[Any] = []

    def run() -> None:
        try:
            results.append((work(), None))
        except BaseException as error:
            results.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert results, f"still running after {seconds} s"
    ((value, error),) = results
    if error is not None:
        raise error
    return value


def test_an_error_while_finishing_loses_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    paged = PagedBackend(tiny.model(), SPEC)
    finish, finished = paged._engine.scheduler.finish, []

    def failing(sequence: Any, *, forget: bool = False) -> None:
        finished.append(sequence)
        if len(finished) == 2:
            raise RuntimeError("CUDA error: an illegal memory access")
        finish(sequence, forget=forget)

    batch = [Request((token, 1), 2) for token in range(4)]
    with monkeypatch.context() as patch:
        patch.setattr(paged._engine.scheduler, "finish", failing)
        found = run_within(60, lambda: dict(paged.refine(batch)))
    assert sorted(found) == [0, 1, 2, 3]
    assert "illegal memory access" in str(found[3])
    assert isinstance(found[0], Refinement)
    assert_idle(paged)


def test_an_error_while_pooling_fails_all_finished_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    paged = PagedBackend(tiny.model(), SPEC)
    pooled: list[torch.Tensor] = []

    def failing(states: torch.Tensor) -> torch.Tensor:
        pooled.append(states)
        if len(pooled) == 2:
            raise RuntimeError("CUDA out of memory")
        return pool(states)

    sequences = [Sequence((1, 2), 3), Sequence((3, 4), 2)]  # done in one forward, after different numbers of steps
    for sequence in sequences:
        paged._engine.scheduler.add(sequence)
        paged._engine.scheduler.schedule()
        sequence.states = [torch.ones(32)] * (1 + sequence.steps)
    monkeypatch.setattr(engine, "pool", failing)
    monkeypatch.setattr(paged._engine, "_step", lambda: paged._engine._finish(sequences))
    paged._engine.step()
    assert {sequence for sequence, _ in paged._engine.undelivered} == set(sequences)
    assert all("out of memory" in str(outcome) for _, outcome in paged._engine.undelivered)


TRACED = ("engine/engine.py", "engine/scheduler.py", "engine/block_manager.py", "backends/paged.py")


@contextlib.contextmanager
def interrupted(after: int) -> Any:
    """Raise KeyboardInterrupt at the `after`-th line that the engine or `_step_engine` executes in this thread."""
    left = after

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left
        code = frame.f_code
        if not code.co_filename.endswith(TRACED) or (
            code.co_filename.endswith("paged.py") and code.co_name != "_step_engine"
        ):
            return None
        if event == "line":
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(None)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [None, 40])
def test_an_interrupt_anywhere_loses_nothing(rows: int | None) -> None:
    model = tiny.model()
    size = bytes_per_block(model.config, 4, torch.float32)
    after, hit = 1, True
    while hit:
        options: dict[str, Any] = {} if rows is None else {"cache_bytes": rows // 4 * size, "block_size": 4}
        paged = PagedBackend(model, SPEC, **options)
        other = paged.refine(Request((7, token, 8, 9, 10, 11), 1 + 6 * token) for token in range(3))
        others = dict([next(other)])
        hit = False
        with interrupted(after):
            try:
                list(paged.refine([Request((7, 2), 3), Request((7, 3, 4, 5, 6, 8, 9, 10, 11), 5)]))
            except KeyboardInterrupt:
                hit = True
        others |= run_within(60, partial(dict, other))
        assert sorted(others) == [0, 1, 2], f"after {after} lines"
        assert_idle(paged)
        after += 37  # of about 1,700 lines
    assert after > 800


def test_a_lost_text_raises_instead_of_looping_forever(monkeypatch: pytest.MonkeyPatch) -> None:
    paged = PagedBackend(tiny.model(), SPEC)
    monkeypatch.setattr(paged._engine, "step", paged._engine.scheduler.drain)
    with pytest.raises(GircseError, match="lost a text"):
        run_within(60, lambda: list(paged.refine([Request((1, 2), 2)])))


def test_a_call_ends_only_with_its_last_result_queued(monkeypatch: pytest.MonkeyPatch) -> None:
    class RecordingDeque(deque[Any]):
        def append(self, item: Any) -> None:
            open_counts.append(len(call.indices))
            super().append(item)

    open_counts: list[int] = []
    call = _Call()
    call.done = RecordingDeque()
    monkeypatch.setattr(module, "_Call", lambda cancelled: call)
    assert len(list(PagedBackend(tiny.model(), SPEC).refine([Request((1, 2), 2)]))) == 1
    assert open_counts == [1], "the call looked finished before its last result was queued"


def test_closing_waits_for_one_forward_and_not_for_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    paged = PagedBackend(tiny.model(), SPEC)
    forward, entered, go_on = paged._engine.runner.forward, threading.Semaphore(0), threading.Semaphore(0)

    def slow(chunks: Any) -> Any:
        entered.release()
        assert go_on.acquire(timeout=60)
        return forward(chunks)

    monkeypatch.setattr(paged._engine.runner, "forward", slow)
    errors: list[GircseError] = []

    def embed() -> None:
        try:
            list(paged.refine([Request((token, 1), 200) for token in range(3)]))
        except GircseError as error:
            errors.append(error)

    caller = threading.Thread(target=embed, daemon=True)
    caller.start()
    assert entered.acquire(timeout=60)
    closing = threading.Thread(target=paged.close, daemon=True)
    closing.start()
    while not paged._closed and closing.is_alive():
        time.sleep(0.01)
        if not entered.acquire(blocking=False):
            continue
        pytest.fail("another forward was started")
    go_on.release()
    closing.join(60)
    caller.join(60)
    assert not closing.is_alive()
    assert not caller.is_alive()
    assert "closed" in str(errors[0])


@pytest.mark.parametrize("make_backend", [PagedBackend, lambda model, _: ReferenceBackend(model)])
def test_closing_in_the_middle_of_a_forward(make_backend: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Close in the computing thread, as a signal handler would."""
    backend = make_backend(tiny.model(), SPEC)
    normalize = torch.nn.functional.normalize

    def closing(*arguments: Any, **options: Any) -> Any:
        backend.close()
        return normalize(*arguments, **options)

    monkeypatch.setattr(torch.nn.functional, "normalize", closing)
    with pytest.raises(GircseError, match="closed"):
        run_within(60, lambda: list(backend.refine([Request((1, 2), 2)] * 3)))
    backend.close()
    assert not hasattr(backend, "_engine") and not hasattr(backend, "_model")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_using_the_backend_in_a_forked_process_raises() -> None:
    paged = PagedBackend(tiny.model(), SPEC)
    paged._engine_busy = True  # as if another thread ran the engine; the child lacks that thread

    def check() -> None:
        with pytest.raises(GircseError, match="forked"):
            list(paged.refine([Request((1, 2), 2)]))
        paged.close()

    run_in_fork(check)
