"""Helpers of the benchmarks: medians, rounds, locks, and reports that resume."""

import argparse
import fcntl
import json
import multiprocessing
from collections.abc import Callable
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

pytest.importorskip("benchmarks.common", reason="benchmarks/ is not part of this copy")

from benchmarks import common, machine, memory, quality, report
from benchmarks.cost import Stream
from gircse_rag.backend import Request
from gircse_rag.backends.paged import PagedBackend
from gircse_rag.spec import EmbeddingSpec
from tests import tiny


def arguments(tmp_path: Path, **changes: object) -> argparse.Namespace:
    fields = {"out": tmp_path / "r.json", "threads": 1, "idle_lock": None, "idle_gate": None, "rest": 0.0, "texts": 8}
    return argparse.Namespace(**{**fields, **changes})


def row(ours: float, loop: float, texts: int = 10) -> dict[str, object]:
    return {"texts": texts, "ours": {"wall": ours, "cpu": 2 * ours}, "loop": {"wall": loop, "cpu": loop}}


def test_ratios_are_medians_of_the_ratio_within_a_round() -> None:
    rounds = [row(1, 3), row(2, 8), row(10, 20)]  # ratios 3, 4, 2; the ratio of the medians would be 4
    found = common.summary(rounds, ["ours", "loop"])
    assert found["speedup"] == {"ours": 3}
    assert found["time_ratio"] == {"ours": pytest.approx(1 / 3)}
    assert found["texts_per_second"] == {"ours": 5, "loop": 1.25}
    assert common.summary(rounds, ["ours", "loop"], "cpu")["speedup"] == {"ours": 1.5}


def test_every_contestant_runs_every_round_in_alternating_order(tmp_path: Path) -> None:
    calls: list[tuple[str, object]] = []
    contestants = {name: lambda part, name=name: calls.append((name, part)) for name in ("ours", "loop")}
    warm: list[tuple[int, ...]] = [(0,)]
    rounds: list[list[tuple[int, ...]]] = [[(1,), (2,)], [(3,), (4,)]]
    found = common.compare(contestants, rounds, arguments(tmp_path), warm=warm)
    timed = [call for call in calls if call[1] is not warm]
    assert timed == [("ours", rounds[0]), ("loop", rounds[0]), ("loop", rounds[1]), ("ours", rounds[1])]
    assert [call[1] is warm for call in calls] == [True, False] * 4
    assert [one["texts"] for one in found["rounds"]] == [2, 2]


def test_rounds_are_equal_and_share_no_text() -> None:
    assert common.split([(i,) for i in range(7)], 3) == [[(0,), (1,)], [(2,), (3,)], [(4,), (5,)]]
    with pytest.raises(SystemExit, match="do not make 3 rounds"):
        common.split([(1,)], 3)


def test_a_stream_uses_each_token_once() -> None:
    stream = Stream([(1, 2, 3), (4, 5, 6)])
    assert stream.prompts(2, 2) + stream.prompts(1, 2) == [(1, 2), (3, 4), (5, 6)]
    with pytest.raises(SystemExit, match="6 tokens, 7 are needed"):
        stream.prompts(1, 1)


def test_repeated_documents_are_salted_so_that_all_differ() -> None:
    found = memory.salted([(1, 2), (3,)], 5)
    assert found == [(1, 2), (3,), (1, 1, 2), (1, 3), (2, 1, 2)]


def test_work_counts_packed_rows_and_soft_rows() -> None:
    model = tiny.model()
    spec = EmbeddingSpec(base_model="tiny", base_hash="0", tokenizer_hash="0", dimension=32)
    backend = PagedBackend(model, spec, cache_bytes=2**20)
    backend._engine.sweeping = False
    work = common.Work(backend)
    list(backend.refine(Request(tuple(range(first, first + 6)), 2) for first in (1, 50)))
    assert (work.rows, work.soft_rows, work.forwards) == (2 * (6 + 2), 2 * 2, 3)
    body = 2 * (32 * 32 * 2 + 2 * 32 * 16 + 3 * 32 * 48)  # q, o; k, v; gate, up, down: of both layers
    assert work.flops(model) == 2 * body * 16 + 4 * 400 * 32 * 4


def test_our_vectors_come_in_the_order_of_the_prompts() -> None:
    model = tiny.model()
    spec = EmbeddingSpec(base_model="tiny", base_hash="0", tokenizer_hash="0", dimension=32)
    prompts = [tuple(range(1, 1 + n)) for n in (3, 9, 5)]
    ours = common.paged(PagedBackend(model, spec, cache_bytes=2**20), 3)(prompts)
    assert (ours * common.loop(model, 3)(prompts)).sum(axis=1) == pytest.approx(1, abs=1e-4)


def test_a_report_is_written_after_each_part_and_resumes(tmp_path: Path) -> None:
    first = report.Report(arguments(tmp_path), measure=False)
    first.part("one", lambda: {"x": 1})
    assert json.loads(first.path.read_text())["results"] == {"one": {"x": 1}}
    with pytest.raises(KeyboardInterrupt):
        first.part("two", _raise_interrupt)

    second = report.Report(arguments(tmp_path, rest=9.0), measure=False)  # `rest` does not change the run
    second.part("one", lambda: pytest.fail("measured again"))
    second.part("two", lambda: {"x": 2})
    assert json.loads(second.path.read_text())["results"] == {"one": {"x": 1}, "two": {"x": 2}}
    with pytest.raises(SystemExit, match="use another --out"):
        report.Report(arguments(tmp_path, texts=9), measure=False)


def _raise_interrupt() -> object:
    raise KeyboardInterrupt


def test_idle_takes_the_gate_and_then_waits_for_the_lock(tmp_path: Path) -> None:
    """`other` holds the lock: the gate must be taken at once, the lock only after `other` releases it."""
    lock, gate = tmp_path / "idle", tmp_path / "gate"
    held = arguments(tmp_path, idle_lock=lock, idle_gate=gate)
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    waiting = context.Process(target=_hold, args=(held, ready), daemon=True)
    with lock.open("a") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        waiting.start()
        try:
            _wait_until(lambda: _is_held(gate))
            assert not ready.wait(0.2)
            fcntl.flock(other, fcntl.LOCK_UN)
            assert ready.wait(10)
            assert _is_held(lock)
        finally:
            waiting.terminate()
            waiting.join()
    assert not _is_held(gate)


def _hold(held: argparse.Namespace, ready: Event) -> None:
    with machine.idle(held):
        ready.set()
        multiprocessing.Event().wait(60)


def _is_held(path: Path) -> bool:
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _wait_until(condition: Callable[[], bool]) -> None:
    import time

    for _ in range(500):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("the condition never became true")


def test_the_vectors_cache_can_be_reopened(tmp_path: Path) -> None:
    import numpy as np

    path = tmp_path / "vectors.npz"
    cache = quality.Cache(path)
    cache["a|b/c"] = np.ones((2, 3), dtype=np.float32)
    again = quality.Cache(path)
    assert "a|b/c" in again and "other" not in again
    assert (again["a|b/c"] == 1).all()
