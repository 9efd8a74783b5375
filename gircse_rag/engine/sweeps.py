"""Sweeps: all K soft positions of a sequence in one forward, again until they settle. The engine says who sweeps.

A fixed-point iteration over all positions, in the manner of Jacobi decoding:

    drafts   the mean soft token of each position over earlier sequences; they go with the prompt, in its prefill
    sweep    one causal forward over the open positions, then s_{k+1} = soft_token(h_k) for all of them

After sweep j the first j positions are exact, so K + 1 forwards, the prefill one of them, give the sequential result.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Relative change of the soft tokens (root mean square over the K positions) at which a sequence is done, and that at
# which a position at the front leaves the sweep. `averaged` (docs/understand/training-record.md), bfloat16, 30 queries, error 1 - cos
# to sequential over all z_k: at 0.05, 0.07, 0.1 K=5 takes 3.9, 3.3, 2.8 forwards (error at most 8e-5, 8e-5, 1e-4) and
# K=20 takes 5.2, 4.5, 3.8 (1e-4, 1e-4, 6e-4). Its mean is 3e-5 to 6e-5, of which rounding alone is 3e-5.
SETTLED = 0.07
POSITION_SETTLED = 0.02

# In float32 what is left after sweeps is rounding (its users compare vectors at 1e-6).
SETTLED_FLOAT32 = 0.000002

# Share of its old value that an open position keeps. `averaged`'s soft tokens take turns (a newline, then a word), so
# their errors change sign from sweep to sweep: without damping K=20 takes 6.9 forwards, with 0.15, 0.25, 0.33 5.2, 4.5,
# 4.3 (error at most 1e-4, 1e-4, 4e-4); K=5 takes 3.1, 3.2, 3.3, 3.5. Anderson acceleration does no better.
DAMPING = 0.25

LEARNED = 32  # sequences whose mean the drafts are; with one instead K=20 takes 4.8 forwards, its error at most 3e-4


class Drafts:
    """Soft tokens to start from: the mean of each position over the first sequences that came so far.

    They depend hardly on text or instruction (documents' are as good for queries), but they differ between checkpoints.
    """

    def __init__(self) -> None:
        self._means: list[Tensor] = []
        self._counts: list[int] = []

    def learn(self, soft: list[Tensor]) -> None:
        """Take in s_1 .. s_k, (d,) each, of a finished sequence."""
        for position, token in enumerate(soft):
            if position == len(self._means):
                self._means.append(token.float().clone())
                self._counts.append(1)
            elif self._counts[position] < LEARNED:
                self._counts[position] += 1
                self._means[position].lerp_(token.float(), 1 / self._counts[position])

    def tokens(self, steps: int, dtype: torch.dtype) -> list[Tensor]:
        """`steps` drafts, (d,) each, the last one repeated where fewer are known; none where nothing is."""
        known = [mean.to(dtype) for mean in self._means[:steps]]
        return known + known[-1:] * (steps - len(known))


def advance(old: Tensor, made: Tensor, steps: int) -> tuple[int, Tensor]:
    """What a sweep has settled, and the inputs of the next.

    Args:
        old: (m, d), the inputs of the open positions but the first, whose input is final.
        made: (m, d), the soft tokens that this sweep made for them.
        steps: K.

    Returns:
        how many of the m + 1 open positions are final now, and (m, d) new inputs: of the first position that is still
        open as it was made, which is exact, of those after it damped.
    """
    float32 = made.dtype == torch.float32
    was, now = old.float(), made.float()
    moved = ((now - was).norm(dim=1) / now.norm(dim=1)).tolist()  # a GPU is waited for once
    if sum(change**2 for change in moved) <= steps * (SETTLED_FLOAT32 if float32 else SETTLED) ** 2:
        return len(made) + 1, made
    near = [change <= (SETTLED_FLOAT32 if float32 else POSITION_SETTLED) for change in moved]
    num_final = 1 + [*near, False].index(False)
    inputs = made.clone()
    if not float32:  # there the end counts, where plain sweeps come closer to exact faster
        inputs[num_final:] = was.lerp(now, 1 - DAMPING)[num_final:].to(made.dtype)
    return num_final, inputs
