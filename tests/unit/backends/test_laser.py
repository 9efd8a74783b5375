"""LaSER's pooling, h_0..h_{K-1}: the reference against its published loop, the engine against the reference."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from gircse_rag.backend import Request
from gircse_rag.backends.paged import PagedBackend
from gircse_rag.backends.reference import ReferenceBackend
from gircse_rag.engine import engine, sweeps
from tests import laser, tiny
from tests.unit.backends import test_paged
from tests.unit.backends.test_paged import assert_idle, assert_same, refinements, requests
from tests.unit.engine.test_decoder import needs_float16_products

SPEC = replace(test_paged.SPEC, pooling="mean_with_prompt")
PROMPTS = [[5], list(range(40, 57)), torch.randint(400, (120,), generator=torch.Generator().manual_seed(3)).tolist()]


@pytest.mark.parametrize("tied", [True, False])
def test_the_reference_equals_the_published_loop(tied: bool) -> None:
    """In float64, K = 1 to 20. Its float32 rotary angles, cast to float64, are the same in both."""
    model = tiny.model("qwen3", tied=tied).double()
    backend = ReferenceBackend(model, pools_prompt=True)
    for prompt in PROMPTS:
        ((_, found),) = refinements_of(backend, [Request(tuple(prompt), 20)])
        for steps in range(1, 21):
            (expected,) = laser.encode(model, [prompt], steps).numpy()
            assert np.abs(found[steps - 1] - expected).max() <= 1e-6, steps
            ((_, alone),) = refinements_of(backend, [Request(tuple(prompt), steps)])
            assert alone.shape == (steps, 32) and np.array_equal(alone, found[:steps])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("steps", [1, 3, 5, 20])
def test_engine_and_reference_equal_the_loop_over_a_padded_batch(tied: bool, steps: int) -> None:
    model = tiny.model("qwen3", tied=tied)
    expected = laser.encode(copy.deepcopy(model).double(), PROMPTS, steps).numpy()
    batch = [Request(tuple(prompt), steps) for prompt in PROMPTS]
    for backend in (ReferenceBackend(model, pools_prompt=True), PagedBackend(model, SPEC)):
        found = np.array([rows[-1] for _, rows in refinements_of(backend, batch)])
        assert (1 - (found * expected).sum(axis=1)).max() <= 1e-6


def refinements_of(backend: ReferenceBackend | PagedBackend, batch: list[Request]) -> list[tuple[int, np.ndarray]]:
    found = refinements(dict(backend.refine(batch)))
    return [(index, found[index].trajectory) for index in range(len(batch))]


def test_the_comparison_detects_gircses_pooling() -> None:
    model = tiny.model("qwen3")
    expected = laser.encode(model, [PROMPTS[1]], 3).numpy()[0]
    for wrong in (PagedBackend(model, test_paged.SPEC), ReferenceBackend(model)):
        ((_, found),) = refinements_of(wrong, [Request(tuple(PROMPTS[1]), 3)])
        assert np.abs(found[-1] - expected).max() > 1e-2


@pytest.mark.parametrize("sweeping", [False, True], ids=["sequential", "sweeps"])
@pytest.mark.parametrize("mix", test_paged.MIXES)
def test_the_engine_equals_the_reference(mix: str, sweeping: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeps, "TOLERANCE_FLOAT32", 0.0)
    monkeypatch.setattr(engine, "MIN_SETTLED_FLOAT32", 0.0)
    monkeypatch.setattr(engine, "MAX_SWEEP_SEQUENCES", 48 if sweeping else 0)
    monkeypatch.setattr(test_paged, "SPEC", SPEC)
    model, batch = tiny.model("qwen3", tied=False), requests(1)
    expected = refinements(dict(ReferenceBackend(model, pools_prompt=True).refine(batch)))
    paged = test_paged.backend(model, **test_paged.MIXES[mix])
    for order in (1, -1):  # the second pass hits cached prefixes
        numbers = list(range(len(batch)))[::order]
        found = {numbers[i]: outcome for i, outcome in paged.refine([batch[n] for n in numbers])}
        assert_same(refinements(found), expected)
    assert_idle(paged)


@needs_float16_products
def test_float16_weights_equal_the_float32_reference_of_the_same_weights() -> None:
    batch = requests(2)
    expected = dict(ReferenceBackend(tiny.model("qwen3").half().float(), pools_prompt=True).refine(batch))
    assert_same(refinements(dict(PagedBackend(tiny.model("qwen3").half(), SPEC).refine(batch))), refinements(expected))


def test_soft_tokens_are_those_that_were_fed() -> None:
    model = tiny.model("qwen3")
    batch = [Request(tuple(PROMPTS[1]), steps, top_k=3) for steps in (1, 2, 3, 6)]
    paged, reference = (
        refinements(dict(backend.refine(batch)))
        for backend in (PagedBackend(model, SPEC), ReferenceBackend(model, pools_prompt=True))
    )
    of_gircse = refinements(dict(ReferenceBackend(model).refine(batch)))
    for index, request in enumerate(batch):
        found, expected = paged[index].soft_tokens, reference[index].soft_tokens
        assert found is not None and expected is not None and of_gircse[index].soft_tokens is not None
        assert len(found) == request.steps - 1
        assert expected == of_gircse[index].soft_tokens[:-1]  # type: ignore[index]  # the recursion is the same
        assert [[token for token, _ in step] for step in found] == [[token for token, _ in step] for step in expected]


def test_auto_steps_stop_at_the_same_state_in_both() -> None:
    model, prompt = tiny.model("qwen3"), tuple(PROMPTS[1])
    reference, paged = ReferenceBackend(model, pools_prompt=True), PagedBackend(model, SPEC)
    ((_, full),) = refinements_of(reference, [Request(prompt, 20)])
    moved = 1 - (full[1:] * full[:-1]).sum(axis=1)
    tolerance = float(np.sort(moved)[len(moved) // 2]) * 1.01
    expected = int(np.argmax(moved <= tolerance)) + 2
    for backend in (reference, paged):
        ((_, early),) = refinements_of(backend, [Request(prompt, 20, tolerance=tolerance)])
        assert len(early) == expected < 20
        assert np.abs(early - full[:expected]).max() <= 1e-6
