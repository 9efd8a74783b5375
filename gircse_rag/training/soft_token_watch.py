"""What the soft tokens look like while training: the first sign of a collapse, long before a score shows one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SAMPLE = 32


class SoftTokenWatch:
    """Running means over the soft tokens of one training step; `UnrolledRefinement.on_soft_token` takes it.

    Of each refinement step about `SAMPLE` texts are looked at: all of them would cost a hundredth of the training time.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.entropy = self.heaviest = 0.0
        self.mean: Tensor | None = None

    def __call__(self, weights: Tensor) -> None:
        """`weights`: (n, V), a softmax over the vocabulary for each of n texts."""
        with torch.no_grad():
            some = weights.detach()[:: max(1, len(weights) // SAMPLE)].float()
            self.rows += len(some)
            self.entropy += float(torch.special.entr(some).sum())
            self.heaviest += float(some.amax(dim=1).sum())
            total = some.sum(dim=0)
            self.mean = total if self.mean is None else self.mean + total

    def record(self) -> dict[str, Any]:
        """For the log.

        Returns:
            entropy: mean entropy of a soft token, nats (0: one token; ln V: all alike); heaviest: mean weight of its
            heaviest token; commonest, commonest_id: the token that weighs most over all texts and steps, and its mean
            weight there. `heaviest` near 1 is a sharp soft token; `commonest` near 1 is a collapse: all are the same.
            Empty when there was no soft token.
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
