"""Statistics of the soft tokens during training. They show a collapse long before scores do."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SAMPLE = 32
"""Texts per refinement step in the statistics. All texts would cost 1% of the training time."""


class SoftTokenWatch:
    """Running means over the soft tokens of one training step; a callback for `UnrolledRefinement.on_soft_token`."""

    def __init__(self) -> None:
        self.rows = 0
        self.entropy = self.heaviest = 0.0
        self.mean: Tensor | None = None

    def __call__(self, weights: Tensor) -> None:
        """Add one refinement step: `weights` (n, V), a softmax over the vocabulary for each of n texts."""
        with torch.no_grad():
            sampled = weights.detach()[:: max(1, len(weights) // SAMPLE)].float()
            self.rows += len(sampled)
            self.entropy += float(torch.special.entr(sampled).sum())
            self.heaviest += float(sampled.amax(dim=1).sum())
            total = sampled.sum(dim=0)
            self.mean = total if self.mean is None else self.mean + total

    def record(self) -> dict[str, Any]:
        """Return the means for the log; {} if there was no soft token.

        Returns:
            entropy: mean entropy of a soft token in nats (0: a single token; ln V: uniform).
            heaviest: mean weight of each soft token's most probable token; near 1 means sharp soft tokens.
            commonest, commonest_id: mean weight and id of the most probable token over all texts and steps; near 1
            means a collapse: all soft tokens are the same.
        """
        if self.mean is None:
            return {}
        weight, token = (self.mean / self.rows).max(dim=0)
        return {
            "entropy": self.entropy / self.rows,
            "heaviest": self.heaviest / self.rows,
            "commonest": float(weight),
            "commonest_id": int(token),
        }
