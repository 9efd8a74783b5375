"""The reference backend against a float64 transcription that shares no code with it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from gircse_rag.backend import Refinement, Request
from gircse_rag.backends.reference import ReferenceBackend
from gircse_rag.errors import GircseError, InputError
from tests import tiny, transcription

PROMPTS = [
    (5,),
    tuple(range(40, 57)),
    tuple(torch.randint(400, (120,), generator=torch.Generator().manual_seed(3)).tolist()),
]
TOLERANCE = {1: 1e-6, 5: 1e-6, 20: 1e-5}


def _run(backend: ReferenceBackend, request: Request) -> Refinement:
    ((_, outcome),) = backend.refine([request])
    assert isinstance(outcome, Refinement), outcome
    return outcome


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("steps", [1, 5, 20])
def test_equals_the_float64_transcription(family: str, tied: bool, steps: int) -> None:
    model = tiny.model(family, tied=tied)
    backend = ReferenceBackend(model)
    for prompt in PROMPTS:
        expected, weights = transcription.refine(model, list(prompt), steps)
        assert weights.max() > 0.3, "the soft-token distributions are too flat to reveal a wrong one"
        found = _run(backend, Request(prompt, steps)).trajectory
        assert found.shape == (steps, 32)
        assert found.dtype == np.float32
        assert np.abs(found - expected.numpy()).max() <= TOLERANCE[steps]


@pytest.mark.parametrize(
    "mistake",
    [{"temperature": 1.1}, {"head_is_embeddings": True}, {"skip_final_norm": True}, {"pool_h0": True}],
    ids=lambda mistake: next(iter(mistake)),
)
def test_the_comparison_detects_a_mistake(mistake: dict[str, Any]) -> None:
    model = tiny.model(tied=False)
    wrong, _ = transcription.refine(model, list(PROMPTS[1]), 5, **mistake)
    found = _run(ReferenceBackend(model), Request(PROMPTS[1], 5)).trajectory
    assert np.abs(found - wrong.numpy()).max() > 1e-3


def test_temperature_reaches_the_soft_token() -> None:
    model = tiny.model()
    expected, _ = transcription.refine(model, list(PROMPTS[1]), 5, temperature=0.5)
    found = _run(ReferenceBackend(model, temperature=0.5), Request(PROMPTS[1], 5)).trajectory
    assert np.abs(found - expected.numpy()).max() <= 1e-6


def test_auto_steps_stop_once_settled_and_not_before() -> None:
    backend = ReferenceBackend(tiny.model())
    full = _run(backend, Request(PROMPTS[1], 20)).trajectory
    moved = 1 - (full[1:] * full[:-1]).sum(axis=1)
    tolerance = float(np.sort(moved)[len(moved) // 2])
    early = _run(backend, Request(PROMPTS[1], 20, tolerance=tolerance * 1.0001))
    expected = int(np.argmax(moved <= tolerance * 1.0001)) + 2
    assert early.steps == expected < 20
    assert np.array_equal(early.trajectory, full[:expected])


def test_soft_tokens_are_the_most_probable_tokens() -> None:
    model = tiny.model()
    _, weights = transcription.refine(model, list(PROMPTS[1]), 3)
    found = _run(ReferenceBackend(model), Request(PROMPTS[1], 3, top_k=4)).soft_tokens
    assert found is not None
    top = weights.topk(4)
    for step in range(3):
        assert [token for token, _ in found[step]] == top.indices[step].tolist()
        assert [weight for _, weight in found[step]] == pytest.approx(top.values[step].tolist(), abs=1e-5)


def test_a_request_beyond_the_window_fails_alone() -> None:
    backend = ReferenceBackend(tiny.model())
    outcomes = dict(backend.refine([Request((1,) * tiny.WINDOW, 5), Request((1, 2), 5)]))
    assert isinstance(outcomes[0], InputError)
    assert str(tiny.WINDOW) in str(outcomes[0])
    assert isinstance(outcomes[1], Refinement)


def test_nan_activations_are_reported() -> None:
    model = tiny.model()
    model.get_input_embeddings().weight[7] = float("nan")
    outcomes = dict(ReferenceBackend(model).refine([Request((7, 8), 2)]))
    assert isinstance(outcomes[0], GircseError)
    assert "NaN" in str(outcomes[0])


def test_requests_are_taken_one_at_a_time_from_an_endless_iterator() -> None:
    taken = 0

    def endless() -> Iterator[Request]:
        nonlocal taken
        while True:
            taken += 1
            yield Request((1, 2, 3), 1)

    results = ReferenceBackend(tiny.model()).refine(endless())
    for expected in range(3):
        index, outcome = next(results)
        assert index == expected
        assert isinstance(outcome, Refinement)
    assert taken == 3


def test_a_closed_backend_raises() -> None:
    backend = ReferenceBackend(tiny.model())
    backend.close()
    backend.close()
    with pytest.raises(GircseError, match="closed"):
        next(iter(backend.refine([Request((1,), 1)])))
