"""A batch in fixed grids equals the packed batch (on a CPU the same code runs without a graph)."""

import numpy as np
import pytest
import torch

from benchmarks.training_h100.graphed import GraphedStep, Shape, spread
from gircse_rag.errors import InputError
from gircse_rag.training.losses import icr_loss
from gircse_rag.training.unrolled import UnrolledRefinement
from tests.unit.training.test_unrolled import tiny


def test_a_graphed_step_gives_the_packed_step_s_loss_and_gradients():
    model = tiny("llama")
    generator = np.random.default_rng(0)
    texts = [generator.integers(0, 97, size=int(length)).tolist() for length in generator.integers(1, 20, size=12)]
    right = np.zeros((4, 8), dtype=bool)
    right[0, 2] = right[3, 0] = True
    module = UnrolledRefinement(model)
    means: list[torch.Tensor] = []
    module.on_soft_token = lambda weights: means.append(weights.detach().mean(dim=0))
    states = module(texts, 3)
    module.on_soft_token = None
    loss = icr_loss(states[:4], states[4:], not_negatives=torch.from_numpy(right))
    model.zero_grad()
    loss.total.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}

    lengths = np.sort([len(text) for text in texts])
    shape = Shape.enclosing(np.stack([lengths, np.maximum(lengths - 1, 1)]), 3)
    assert len(shape.counts) <= 3 and shape.tokens >= lengths.sum()
    step = GraphedStep(module, shape, 4, 3)
    numbers = step(texts, right)
    torch.testing.assert_close(numbers[0], loss.total.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(numbers[2:-1], loss.stepwise.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(numbers[-1], spread(torch.stack(means)).mean(), rtol=1e-4, atol=1e-5)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert (parameter.grad - expected[name]).norm() <= 1e-4 * expected[name].norm(), name


def test_a_batch_that_does_not_fit_is_refused():
    shape = Shape((2, 1), (8, 16))
    with pytest.raises(InputError, match="does not fit"):
        shape.place([[1] * 9, [1] * 9, [1] * 3])
    with pytest.raises(InputError, match="does not fit"):
        shape.place([[1], [1]])


def test_soft_tokens_that_are_all_one_token_have_no_spread():
    assert spread(torch.eye(5)[:2]).tolist() == [0, 0]
    torch.testing.assert_close(spread(torch.full((1, 5), 0.2)), torch.tensor([5.0]).log())
