"""Which positions a sweep settles, what the next one starts from, and what a sequence starts from."""

from __future__ import annotations

import pytest
import torch

from gircse_rag.engine.sweeps import DAMPING, LEARNED, Drafts, advance

OLD = torch.ones(3, 4, dtype=torch.bfloat16)


def moved(*shares: float) -> torch.Tensor:
    return (OLD.float() * (1 + torch.tensor(shares))[:, None]).bfloat16()


def test_the_first_open_position_is_exact_and_those_after_it_are_damped() -> None:
    made = moved(1.0, 1.0, 1.0)
    num_final, inputs = advance(OLD, made, steps=4)
    assert num_final == 1
    assert torch.equal(inputs[0], made[0])
    assert torch.equal(inputs[1:].float(), torch.full((2, 4), 2 - DAMPING))


def test_positions_leave_from_the_front_only() -> None:
    num_final, inputs = advance(OLD, moved(0.01, 1.0, 0.0), steps=4)
    assert num_final == 2
    assert torch.equal(inputs[1], moved(0.01, 1.0, 0.0)[1])


def test_a_sequence_ends_on_the_mean_move_of_all_positions() -> None:
    assert advance(OLD, moved(0.0, 0.1, 0.0), steps=4)[0] == 4
    assert advance(OLD, moved(0.0, 0.2, 0.0), steps=4)[0] == 2


def test_nan_settles_nothing_that_is_not_exact() -> None:
    assert advance(OLD, moved(float("nan"), 0.0, 0.0), steps=4)[0] == 1


def test_float32_goes_on_to_rounding_and_is_not_damped() -> None:
    made = OLD.float() * 1.001
    num_final, inputs = advance(OLD.float(), made, steps=4)
    assert num_final == 1
    assert torch.equal(inputs, made)


def test_drafts_are_the_mean_of_the_first_texts_by_position() -> None:
    drafts = Drafts()
    assert drafts.tokens(3, torch.float32) == []
    drafts.learn([torch.zeros(2), torch.zeros(2)])
    drafts.learn([torch.ones(2)])
    first, second, beyond = drafts.tokens(3, torch.float32)
    assert (first.tolist(), second.tolist(), beyond.tolist()) == ([0.5, 0.5], [0.0, 0.0], [0.0, 0.0])
    for _ in range(LEARNED):
        drafts.learn([torch.ones(2)])
    assert drafts.tokens(1, torch.float32)[0].tolist() == pytest.approx([(LEARNED - 1) / LEARNED] * 2)
