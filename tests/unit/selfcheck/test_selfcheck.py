"""The self-check passes on a sound engine, and fails with figures on a faulty one. Everything but CUDA runs here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gircse_rag.checkpoint import Checkpoint, load_checkpoint
from gircse_rag.embedder import Embedder
from gircse_rag.engine import attention
from gircse_rag.engine.decoder import Layer
from gircse_rag.engine.gathered import GatheredPlan
from gircse_rag.errors import CheckpointError, GircseError
from gircse_rag.hardware import has_float16_products, multiplies_bfloat16
from gircse_rag.selfcheck import Finding, congruence, finding, graph, samples, self_check
from gircse_rag.selfcheck.finding import run_check
from gircse_rag.weights import DecoderWeights
from tests import tiny
from tests.unit.engine.test_attention import kernel

CPU = torch.device("cpu")


def check(folder: Path) -> dict[str, Finding]:
    return {found.name: found for found in self_check(str(folder), CPU)}


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_sound_engine_passes(family: str, tmp_path: Path) -> None:
    found = check(tiny.folder(tmp_path, family))
    states = {name: one.state for name, one in found.items()}
    assert "failed" not in states.values(), found
    assert states["congruence, float32"] == states["attention, gathered, float32"] == states["speed"] == "passed"
    assert states["attention, paged, bfloat16"] == states["graph"] == "skipped"
    assert (states["congruence, bfloat16"] == "passed") == multiplies_bfloat16(CPU)
    assert (states["congruence, float16"] == "passed") == has_float16_products()
    assert found["deterministic, float32"].figures == {"different vectors": 0}
    exact = found["congruence, float32"]
    assert set(exact.figures) == set(exact.limits) == {"together", "one by one", "chunks of 48 rows"}
    assert 0 <= max(exact.figures.values()) <= 1e-6
    assert min(found["speed"].figures.values()) > 0


def test_a_wrong_temperature_fails_congruence_alone(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def warmer(checkpoint: Checkpoint, **options: Any) -> Embedder:
        return samples.engine(replace(checkpoint, spec=replace(checkpoint.spec, temperature=1.3)), **options)

    monkeypatch.setattr(congruence, "engine", warmer)
    found = check(tiny_folder)
    failed = found["congruence, float32"]
    assert failed.state == "failed" and failed.figures["together"] > failed.limits["together"]
    assert {name for name, one in found.items() if one.state == "failed"} <= {
        f"congruence, {dtype}" for dtype in ("float32", "bfloat16", "float16")
    }


def test_an_engine_that_raises_fails_with_the_reason(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Tensor:
        raise RuntimeError("illegal instruction\nat some address")

    monkeypatch.setattr(Layer, "forward", broken)
    found = check(tiny_folder)
    assert found["congruence, float32"].state == found["speed"].state == "failed"
    assert "RuntimeError: illegal instruction" in found["speed"].found
    assert found["attention, gathered, float32"].state == "passed"


def test_bits_that_depend_on_the_batch_fail(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ordinary(checkpoint: Checkpoint, **_: Any) -> Embedder:
        return samples.engine(checkpoint)

    monkeypatch.setattr(congruence, "engine", ordinary)
    failed = check(tiny_folder)["deterministic, float32"]
    assert failed.state == "failed" and failed.figures["different vectors"] > 0


def test_wrong_attention_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    config = DecoderWeights.of(tiny.model()).config
    one = partial(congruence.check_attention, config, CPU, "float32", False)
    assert run_check("one", one).state == "passed"
    attend = GatheredPlan.attend

    def sharper(self: GatheredPlan, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        return attend(self, layer, query, key, value, 1.01 * scaling)

    monkeypatch.setattr(GatheredPlan, "attend", sharper)
    assert run_check("one", one).state == "failed"


def test_the_paged_check_runs_up_to_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that says it has CUDA; the kernel itself is replaced by plain attention, or is missing."""
    config = DecoderWeights.of(tiny.model()).config
    measure = attention.plan_difference
    monkeypatch.setattr(
        congruence, "plan_difference", lambda plan, config, _, *rest, **o: measure(plan, config, CPU, *rest, **o)
    )
    monkeypatch.setattr(congruence, "_usable", lambda dtype, _: getattr(torch, dtype))
    one = partial(congruence.check_attention, config, torch.device("cuda"), "bfloat16", True)
    monkeypatch.setattr(attention, "varlen_attn", kernel)
    assert run_check("one", one).state == "passed"

    def without(*_: object, **__: object) -> Tensor:
        raise TypeError("varlen_attn() got an unexpected keyword argument 'block_table'")

    monkeypatch.setattr(attention, "varlen_attn", without)
    skipped = run_check("one", one)
    assert skipped.state == "skipped" and torch.__version__ in skipped.found and "block_table" in skipped.found

    def faulty(*arguments: Any, **options: Any) -> Tensor:
        return 1.1 * kernel(*arguments, **options)

    monkeypatch.setattr(attention, "varlen_attn", faulty)
    assert run_check("one", one).state == "failed"


def _again(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """A capture that replays by computing again."""
    step()
    return step


def _stale(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """A capture that copied its inputs: it repeats its first output."""
    output = step()
    return lambda: output


@pytest.mark.parametrize(("capture", "state"), [(_again, "passed"), (_stale, "failed")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_graph_must_follow_its_inputs(capture: Any, state: str, dtype: torch.dtype) -> None:
    weights = DecoderWeights.of(tiny.model().to(dtype))
    found = run_check("graph", partial(graph.measure_graph, weights, capture))
    assert found.state == state, found
    assert found.figures["step ms"] > 0


def test_after_the_budget_checks_are_skipped(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gircse_rag.selfcheck.BUDGET", -1.0)
    assert {one.state for one in check(tiny_folder).values()} == {"skipped"}
    assert all("out of time" in one.found for one in check(tiny_folder).values())


def test_a_figure_that_is_not_a_number_fails() -> None:
    found = run_check("one", lambda: ({"difference": float("nan"), "ms": 1.0}, {"difference": 1.0}))
    assert (found.state, found.figures) == ("failed", {"ms": 1.0}) and "nan" in found.found


def test_our_own_errors_are_told_without_their_class() -> None:
    def fail() -> finding.Figures:
        raise GircseError("the sentence")

    assert run_check("one", fail).found == "the sentence"


def test_a_checkpoint_that_cannot_be_loaded_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        list(self_check(str(tmp_path), CPU))


@pytest.mark.filterwarnings("ignore:1 of . texts? is longer")
def test_limits_in_half_precision_follow_the_reference(tiny_folder: Path) -> None:
    if not multiplies_bfloat16(CPU):
        pytest.skip("this CPU has no bfloat16")
    load = partial(load_checkpoint, str(tiny_folder), device=CPU)
    figures, limits = congruence.check_congruence(load(dtype=torch.float32), load, CPU, "bfloat16", {})
    assert set(limits.values()) == {max(congruence.HALF_FLOOR, congruence.ROUNDING_FACTOR * figures["reference"])}
