"""Sequence: the state of one request in the engine. Knows positions and blocks, but no tensors.

Rows of a sequence, by position:

    0 .. N-1          its prompt tokens
    N .. N+k-1        its soft tokens s_1..s_k: appended one by one, or all K at once as drafts (sweeps.py)

A forward computes the rows [num_cached, num_cached + n). When it reaches the last row, the hidden states of the
output rows come back: h_0 at position N-1, then h_k at position N+k-1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(eq=False, slots=True)
class Sequence:
    """One request's state.

    Attributes:
        token_ids: the prompt, N ids.
        steps: the number of soft tokens K, an upper bound when `tolerance` is set. May be 0 if h_0 is pooled.
        tolerance: leave early as soon as 1 - cos(z_k, z_{k-1}) <= tolerance; None runs all steps.
        owner: the caller (hashable); the scheduler is fair between owners.
        num_cached: rows whose keys and values are in this sequence's blocks.
        block_table: KV blocks in position order; the first `num_shared` came from the prefix cache.
        soft: s_1..s_k, opaque to the policy. Kept through a preemption, so they are replayed instead of recomputed.
        states: h_0..h_j, the hidden states that are final.
        top_tokens: per step the most probable (token id, weight) pairs, if `top_k` > 0.
    """

    token_ids: tuple[int, ...]
    steps: int
    tolerance: float | None = None
    top_k: int = 0
    owner: Any = None
    num_cached: int = 0
    num_shared: int = 0
    num_registered: int = 0
    block_table: list[int] = field(default_factory=list)
    prefix_keys: list[bytes] | None = None
    soft: list[Any] = field(default_factory=list)
    states: list[Any] = field(default_factory=list)
    top_tokens: list[list[tuple[int, float]]] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        """N, the length of the prompt."""
        return len(self.token_ids)

    @property
    def num_rows(self) -> int:
        """Number of rows whose input is known: the prompt and the soft tokens made so far."""
        return len(self.token_ids) + len(self.soft)

    @property
    def num_pending(self) -> int:
        """Number of known rows that are not in the cache, which the next forwards have to compute."""
        return self.num_rows - self.num_cached

    @property
    def max_rows(self) -> int:
        """Number of rows when refinement is complete: N + K."""
        return len(self.token_ids) + self.steps

    @property
    def num_outputs(self) -> int:
        """Number of last rows whose hidden states the engine needs: one, or in a sweep all open positions."""
        return 1 + len(self.soft) - len(self.states)

    @property
    def is_refined(self) -> bool:
        """Whether h_K is final."""
        return len(self.states) > self.steps
