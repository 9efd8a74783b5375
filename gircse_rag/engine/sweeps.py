"""Sweeps: refine all K positions of a sequence at once by Jacobi iteration. engine.py decides which sequences sweep.

A sweep is one step of Jacobi iteration, a fixed-point iteration over all K positions at once, as in Jacobi decoding
(Santilli et al., 2023). Sequential refinement computes s_1, h_1, s_2, h_2, ... with one forward per step. Sweeps guess
every s_k and correct all guesses together, forward by forward, until they stop changing.

    position        one of h_0 .. h_K; the input of position k >= 1 is the soft token s_k
    draft           the first guess of s_k: the mean s_k of earlier sequences; drafts join the prompt's prefill forward
    sweep           one causal forward over the open positions, then s_{k+1} = soft_token(h_k) for all of them
    final, open     a position is final when its h_k is accepted, and open until then
    settle          a position settles when its soft token changes by less than a tolerance from one sweep to the next

The prefill counts as sweep 1. Sweep j makes at least h_0 .. h_{j-1} exact, so K + 1 sweeps give the sequential result.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Largest relative change of a soft token between two sweeps that counts as settled: for a whole sequence (root mean
# square over the K positions), and for its first open positions. Forwards with SEQUENCE_TOLERANCE = 0.05, 0.07, 0.1
# (bfloat16, 30 queries): K=5 3.9, 3.3, 2.8; K=20 5.2, 4.5, 3.8. The error (1 - cos to sequential, any embedding z_k)
# is at most 1e-4, and 6e-4 at K=20 with 0.1. Its mean is 3e-5 to 6e-5; rounding alone is 3e-5.
SEQUENCE_TOLERANCE = 0.07
POSITION_TOLERANCE = 0.02

# Replaces both in float32, where only rounding may remain: users compare float32 vectors at 1e-6.
TOLERANCE_FLOAT32 = 0.000002

# Share of its old input that an open position keeps (not in float32), because errors can change sign with every sweep.
# Forwards with 0, 0.15, 0.25, 0.33 (bfloat16): K=20 6.9, 5.2, 4.5, 4.3; K=5 3.1, 3.2, 3.3, 3.5. The error at K=20 is
# at most 1e-4, 1e-4, 4e-4 with 0.15, 0.25, 0.33. Anderson acceleration does no better.
DAMPING = 0.25

DRAFT_SEQUENCES = 32  # sequences averaged into the drafts; with only one, K=20 takes 4.8 forwards (error at most 3e-4)


class Drafts:
    """First guesses of the soft tokens: the mean per position over the first sequences that finished.

    Soft tokens differ between checkpoints but hardly between texts or instructions: drafts of documents suit queries.
    """

    def __init__(self) -> None:
        self._means: list[Tensor] = []
        self._counts: list[int] = []

    def learn(self, soft: list[Tensor]) -> None:
        """Add s_1..s_k, (d,) each, of a finished sequence to the means."""
        for position, token in enumerate(soft):
            if position == len(self._means):
                self._means.append(token.float().clone())
                self._counts.append(1)
            elif self._counts[position] < DRAFT_SEQUENCES:
                self._counts[position] += 1
                self._means[position].lerp_(token.float(), 1 / self._counts[position])

    def tokens(self, steps: int, dtype: torch.dtype) -> list[Tensor]:
        """Return `steps` drafts, (d,) each; the last known one is repeated. [] before the first `learn`."""
        known = [mean.to(dtype) for mean in self._means[:steps]]
        return known + known[-1:] * (steps - len(known))


def advance(inputs: Tensor, soft_tokens: Tensor, steps: int) -> tuple[int, Tensor]:
    """Decide which positions a sweep made final, and make the inputs of the next sweep.

    Args:
        inputs: (m, d), this sweep's inputs of the open positions except the first, whose input is final.
        soft_tokens: (m, d), the soft tokens that this sweep made for the same positions.
        steps: K.

    Returns:
        The number of the m + 1 open positions that are now final, and (m, d) new inputs. The first position that
        stays open gets its soft token unchanged, because its inputs are final; later positions are damped.
    """
    float32 = soft_tokens.dtype == torch.float32
    before, after = inputs.float(), soft_tokens.float()
    changes = ((after - before).norm(dim=1) / after.norm(dim=1)).tolist()  # the only GPU synchronisation
    if sum(change**2 for change in changes) <= steps * (TOLERANCE_FLOAT32 if float32 else SEQUENCE_TOLERANCE) ** 2:
        return len(soft_tokens) + 1, soft_tokens
    settled = [change <= (TOLERANCE_FLOAT32 if float32 else POSITION_TOLERANCE) for change in changes]
    num_final = 1 + [*settled, False].index(False)
    new_inputs = soft_tokens.clone()
    if not float32:  # float32 iterates until only rounding is left, and undamped sweeps get there faster
        new_inputs[num_final:] = before.lerp(after, 1 - DAMPING)[num_final:].to(soft_tokens.dtype)
    return num_final, new_inputs
