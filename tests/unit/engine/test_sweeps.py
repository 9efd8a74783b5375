"""Sweeps: which positions become final, the inputs of the next sweep, and the drafts of a new sequence."""

from __future__ import annotations

import pytest
import torch

from gircse_rag.engine.sweeps import DAMPING, DRAFT_SEQUENCES, Drafts, advance

OLD = torch.ones(3, 4, dtype=torch.bfloat16)


def perturb(*shares: float) -> torch.Tensor:
    return (OLD.float() * (1 + torch.tensor(shares))[:, None]).bfloat16()


def test_the_first_open_position_is_exact_and_later_ones_are_damped() -> None:
    new = perturb(1.0, 1.0, 1.0)
    num_final, inputs = advance(OLD, new, steps=4)
    assert num_final == 1
    assert torch.equal(inputs[0], new[0])
    assert torch.equal(inputs[1:].float(), torch.full((2, 4), 2 - DAMPING))


def test_positions_become_final_from_the_front_only() -> None:
    num_final, inputs = advance(OLD, perturb(0.01, 1.0, 0.0), steps=4)
    assert num_final == 2
    assert torch.equal(inputs[1], perturb(0.01, 1.0, 0.0)[1])


def test_a_sequence_ends_when_the_mean_change_is_small() -> None:
    assert advance(OLD, perturb(0.0, 0.1, 0.0), steps=4)[0] == 4
    assert advance(OLD, perturb(0.0, 0.2, 0.0), steps=4)[0] == 2


def test_nan_settles_only_the_exact_position() -> None:
    assert advance(OLD, perturb(float("nan"), 0.0, 0.0), steps=4)[0] == 1


def test_float32_sweeps_until_rounding_without_damping() -> None:
    new = OLD.float() * 1.001
    num_final, inputs = advance(OLD.float(), new, steps=4)
    assert num_final == 1
    assert torch.equal(inputs, new)


def test_drafts_are_the_mean_of_the_first_texts_per_position() -> None:
    drafts = Drafts()
    assert drafts.tokens(3, torch.float32) == []
    drafts.learn([torch.zeros(2), torch.zeros(2)])
    drafts.learn([torch.ones(2)])
    first, second, beyond = drafts.tokens(3, torch.float32)
    assert (first.tolist(), second.tolist(), beyond.tolist()) == ([0.5, 0.5], [0.0, 0.0], [0.0, 0.0])
    for _ in range(DRAFT_SEQUENCES):
        drafts.learn([torch.ones(2)])
    assert drafts.tokens(1, torch.float32)[0].tolist() == pytest.approx([(DRAFT_SEQUENCES - 1) / DRAFT_SEQUENCES] * 2)
