"""Iterative Contrastive Refinement: the objective of GIRCSE (Tsai et al., ICLR 2026, section 3.3).

    z_k   = normalize(mean(h_1..h_k))                                    for queries and passages alike
    L_k   = mean_i -log softmax_j(z_k(q_i) . z_k(p_j) / tau)[target_i]   InfoNCE at refinement step k
    R     = mean_k relu(log(L_{k+1} + eps) - log(L_k + eps))             penalty if a later step is worse
    total = mean_k L_k + reg_weight * R

The loss depends only on hidden states, so it is tested without a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from gircse_rag.deprecation import renamed_arguments
from gircse_rag.errors import InputError
from gircse_rag.refinement import pool

# At temperature 0.02 a loss can underflow to 0; without EPSILON its logarithm would make the gradient NaN.
EPSILON = 1e-8


@dataclass(frozen=True)
class IcrLoss:
    """The loss and its parts.

    Attributes:
        total: scalar, float32; call `backward()` on it.
        stepwise: (K,), L_1..L_K.
        regularization: scalar, R without its weight; 0 if K is 1.
    """

    total: Tensor
    stepwise: Tensor
    regularization: Tensor


@renamed_arguments(not_negatives="false_negatives")
def icr_loss(
    query_states: Tensor,
    passage_states: Tensor,
    temperature: float = 0.02,
    reg_weight: float = 1.0,
    *,
    targets: Tensor | None = None,
    step_weights: Sequence[float] | None = None,
    false_negatives: Tensor | None = None,
    near_equal: float | None = None,
    symmetric: bool = False,
    dimensions: Sequence[int] | None = None,
) -> IcrLoss:
    """Compute the ICR loss of one batch with in-batch negatives.

    Args:
        query_states: (B, K, d), raw h_1..h_K of the queries (neither averaged nor normalised), any float dtype. The
            computation is in float32 (float64 stays float64).
        passage_states: (P, K, d). Without `targets`, P is B * (1 + n): each query's positive, then its n negatives.
        temperature: tau > 0.
        reg_weight: weight of R.
        targets: (B,) int64, index of each query's positive among the passages, for ragged negatives.
        step_weights: K numbers >= 0; the mean over steps becomes this weighted mean.
        false_negatives: (B, P) bool, passages to exclude from a query's negatives because they answer it although
            they come from another row. A query's own positive is never excluded.
        near_equal: minimum cosine; also exclude passages with an embedding this close to the query's positive.
        symmetric: average with the loss of each positive against all queries.
        dimensions: Matryoshka: average the loss over these numbers of leading dimensions.

    Raises:
        InputError: shapes or options are inconsistent, or the batch has no negative.
    """
    targets = _check_inputs(
        query_states, passage_states, temperature, targets, step_weights, false_negatives, dimensions
    )
    steps, width = query_states.shape[1:]
    excluded = _exclusion_mask(passage_states, targets, false_negatives, near_equal)

    stepwise_by_size = []
    for size in dimensions or [width]:
        queries, passages = pool(query_states[..., :size]), pool(passage_states[..., :size])
        stepwise_by_size.append(_info_nce(queries, passages, temperature, targets, excluded, symmetric))
    stepwise = torch.stack(stepwise_by_size).mean(dim=0)
    mean = stepwise.mean()
    if step_weights is not None:
        weights = stepwise.new_tensor(step_weights)
        mean = (weights * stepwise).sum() / weights.sum()
    regularization = stepwise.new_zeros(())
    if steps > 1:
        logarithm = torch.log(stepwise + EPSILON)
        regularization = functional.relu(logarithm[1:] - logarithm[:-1]).mean()
    return IcrLoss(mean + reg_weight * regularization, stepwise, regularization)


def _info_nce(
    queries: Tensor, passages: Tensor, temperature: float, targets: Tensor, excluded: Tensor | None, symmetric: bool
) -> Tensor:
    """InfoNCE at every step, (K,), of unit rows (B, K, d) against (P, K, d)."""
    scores = torch.einsum("ikd,jkd->kij", queries, passages) / temperature
    if excluded is not None:
        scores = scores.masked_fill(excluded, float("-inf"))
    loss = _cross_entropy(scores, targets)
    if symmetric:
        own = torch.arange(len(queries), device=targets.device)
        loss = (loss + _cross_entropy(scores[:, :, targets].transpose(1, 2), own)) / 2
    return loss


def _cross_entropy(scores: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy over the rows of (K, B, P) scores: (K,)."""
    expanded = targets.expand(len(scores), -1)
    return functional.cross_entropy(scores.transpose(1, 2), expanded, reduction="none").mean(dim=1)


def _exclusion_mask(
    passages: Tensor, targets: Tensor, false_negatives: Tensor | None, near_equal: float | None
) -> Tensor | None:
    """Mask (B, P) bool of passages excluded from each query's softmax; None if there are none."""
    if false_negatives is None and near_equal is None:
        return None
    excluded = torch.zeros(len(targets), len(passages), dtype=torch.bool, device=passages.device)
    if false_negatives is not None:
        excluded |= false_negatives
    if near_equal is not None:
        final = pool(passages.detach())[:, -1]
        excluded |= final[targets] @ final.T >= near_equal
    own = targets[:, None] == torch.arange(len(passages), device=passages.device)
    return excluded & ~own


def _check_inputs(
    queries: Tensor,
    passages: Tensor,
    temperature: float,
    targets: Tensor | None,
    step_weights: Sequence[float] | None,
    false_negatives: Tensor | None,
    dimensions: Sequence[int] | None,
) -> Tensor:
    """Check shapes and options; return the targets."""
    if queries.dim() != 3 or passages.dim() != 3 or queries.shape[1:] != passages.shape[1:] or 0 in queries.shape:
        raise InputError(
            f"query states {tuple(queries.shape)} and passage states {tuple(passages.shape)} must be (B, K, d) and "
            "(P, K, d) with the same K and d, none of them 0"
        )
    batch, steps, width = queries.shape
    if temperature <= 0:
        raise InputError(f"temperature is {temperature}; it must be positive")
    if len(passages) < 2:
        raise InputError(
            "a batch of one query without negatives always has loss 0; use a larger batch, or give the row a negative"
        )
    if targets is None:
        if len(passages) % batch:
            raise InputError(f"{len(passages)} passages do not divide evenly among {batch} queries; pass `targets`")
        targets = torch.arange(batch, device=passages.device) * (len(passages) // batch)
    elif targets.shape != (batch,) or int(targets.min()) < 0 or int(targets.max()) >= len(passages):
        raise InputError(f"targets must be {batch} row indices of the {len(passages)} passages")
    if step_weights is not None and (len(step_weights) != steps or min(step_weights) < 0 or sum(step_weights) == 0):
        raise InputError(f"step_weights must be {steps} numbers >= 0, not all 0")
    if false_negatives is not None and false_negatives.shape != (batch, len(passages)):
        raise InputError(f"false_negatives is {tuple(false_negatives.shape)}; it must be {(batch, len(passages))}")
    if dimensions is not None and not (dimensions and all(0 < size <= width for size in dimensions)):
        raise InputError(f"dimensions {list(dimensions)} must lie within 1..{width}")
    return targets
