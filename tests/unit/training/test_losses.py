"""`icr_loss` against the paper's formulas in plain float64 loops, and gradient checks. No model is needed."""

import itertools
import math

import pytest
import torch

from gircse_rag.errors import InputError
from gircse_rag.training import icr_loss


def states(batch=4, passages=8, steps=3, width=6, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(batch, steps, width, generator=generator, dtype=dtype),
        torch.randn(passages, steps, width, generator=generator, dtype=dtype),
    )


def unit(rows):
    mean = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    norm = math.sqrt(sum(x * x for x in mean))
    return [x / norm for x in mean]


def transcription(q, p, tau=0.02, weight=1.0, targets=None, excluded=frozenset()):
    """The formulas of losses.py, computed number by number in plain Python."""
    q, p = q.tolist(), p.tolist()
    targets = targets or [i * (len(p) // len(q)) for i in range(len(q))]
    steps, losses = len(q[0]), []
    for k in range(1, steps + 1):
        total = 0.0
        for i, row in enumerate(q):
            z = unit(row[:k])
            scores = {
                j: sum(a * b for a, b in zip(z, unit(passage[:k]), strict=True)) / tau
                for j, passage in enumerate(p)
                if j == targets[i] or (i, j) not in excluded
            }
            top = max(scores.values())
            total += top + math.log(sum(math.exp(s - top) for s in scores.values())) - scores[targets[i]]
        losses.append(total / len(q))
    rises = [max(0.0, math.log(b + 1e-8) - math.log(a + 1e-8)) for a, b in itertools.pairwise(losses)]
    regularization = sum(rises) / len(rises) if rises else 0.0
    return sum(losses) / steps + weight * regularization, losses, regularization


@pytest.mark.parametrize("tau", [0.02, 0.5])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_equals_the_transcription(tau, steps):
    for seed in range(5):
        q, p = states(steps=steps, seed=seed)
        found = icr_loss(q, p, temperature=tau, reg_weight=0.7)
        total, stepwise, regularization = transcription(q, p, tau, 0.7)
        assert found.total.item() == pytest.approx(total, rel=1e-9)
        assert found.stepwise.tolist() == pytest.approx(stepwise, rel=1e-9)
        assert found.regularization.item() == pytest.approx(regularization, rel=1e-9, abs=1e-12)


def test_low_precision_states_are_computed_in_float32():
    q, p = states()
    low = icr_loss(q.bfloat16(), p.bfloat16())
    assert low.total.dtype == torch.float32
    exact = icr_loss(q.bfloat16().double(), p.bfloat16().double())
    torch.testing.assert_close(low.stepwise.double(), exact.stepwise, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"symmetric": True},
        {"dimensions": (2, 6)},
        {"step_weights": (0.0, 1.0, 3.0)},
        {"near_equal": 0.3},
        {"false_negatives": torch.rand(4, 8, generator=torch.Generator().manual_seed(1)) < 0.4},
    ],
    ids=lambda options: next(iter(options), "plain"),
)
def test_gradients(options):
    q, p = states(seed=3)
    q.requires_grad_(), p.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: icr_loss(a, b, temperature=0.3, **options).total, (q, p))


def test_targets_support_ragged_negatives():
    q, p = states(passages=7)
    targets = torch.tensor([3, 0, 6, 2])
    found = icr_loss(q, p, temperature=0.1, targets=targets)
    assert found.total.item() == pytest.approx(transcription(q, p, 0.1, targets=targets.tolist())[0], rel=1e-9)


def test_false_negatives_are_masked_and_the_positive_never_is():
    q, p = states()
    mask = torch.rand(4, 8, generator=torch.Generator().manual_seed(2)) < 0.5
    mask[1] = True
    excluded = {(i, j) for i in range(4) for j in range(8) if mask[i, j]}
    found = icr_loss(q, p, temperature=0.1, false_negatives=mask)
    assert found.total.item() == pytest.approx(transcription(q, p, 0.1, excluded=excluded)[0], rel=1e-9)


def test_near_equal_passages_are_not_negatives():
    q, p = states()
    p[3] = p[0] * 2 + 1e-9  # a near-copy of query 0's positive
    found = icr_loss(q, p, temperature=0.1, near_equal=0.999)
    assert found.total.item() == pytest.approx(transcription(q, p, 0.1, excluded={(0, 3)})[0], rel=1e-6)


def test_symmetric_averages_both_directions():
    q, p = states(passages=4)
    both, forward = icr_loss(q, p, symmetric=True), icr_loss(q, p)
    backward = icr_loss(p, q)
    torch.testing.assert_close(both.stepwise, (forward.stepwise + backward.stepwise) / 2)


def test_matryoshka_averages_over_leading_dimensions():
    q, p = states()
    found = icr_loss(q, p, dimensions=(3, 6))
    expected = (icr_loss(q[..., :3], p[..., :3]).stepwise + icr_loss(q, p).stepwise) / 2
    torch.testing.assert_close(found.stepwise, expected)


def test_step_weights_give_a_weighted_mean_over_steps():
    q, p = states()
    found = icr_loss(q, p, reg_weight=0.0, step_weights=(1, 0, 3))
    torch.testing.assert_close(found.total, (found.stepwise[0] + 3 * found.stepwise[2]) / 4)


def test_a_loss_that_underflows_has_a_finite_gradient():
    q = torch.eye(3)[:, None].repeat(1, 2, 1).requires_grad_()
    loss = icr_loss(q, torch.eye(3)[:, None].repeat(1, 2, 1), temperature=0.001)
    loss.total.backward()
    assert loss.total.item() == 0.0 and q.grad is not None and torch.isfinite(q.grad).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, p: ((q[:1], p[:1]), {}), "without negatives always has loss 0"),
        (lambda q, p: ((q[:3], p), {}), "do not divide"),
        (lambda q, p: ((q[..., :4], p), {}), "same K and d"),
        (lambda q, p: ((q, p), {"temperature": 0.0}), "temperature"),
        (lambda q, p: ((q, p), {"targets": torch.tensor([0, 1, 2, 8])}), "targets"),
        (lambda q, p: ((q, p), {"step_weights": (1.0,)}), "step_weights"),
        (lambda q, p: ((q, p), {"false_negatives": torch.zeros(4, 4, dtype=torch.bool)}), "false_negatives"),
        (lambda q, p: ((q, p), {"dimensions": (7,)}), "dimensions"),
    ],
)
def test_mismatched_arguments_are_refused(change, message):
    arguments, options = change(*states())
    with pytest.raises(InputError, match=message):
        icr_loss(*arguments, **options)
