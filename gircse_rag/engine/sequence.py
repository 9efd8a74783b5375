"""Sequence: one request on its way through the engine. Knows positions and blocks, and nothing of tensors.

Rows of a sequence, by position:

    0 .. N-1          its prompt tokens
    N .. N+k-1        its soft tokens s_1..s_k, appended as they are made, or all K at once: drafts (sweeps.py)

A forward computes the rows [num_cached, num_cached + n). When it reaches the last row, the hidden states of the
output rows come back: h_0 at position N-1, then h_k at position N+k-1.
"""

from __future__ import annotations

from typing import Any


class Sequence:
    """One request's state.

    Attributes:
        token_ids: the prompt, N ids.
        steps: K, an upper bound when `tolerance` is set.
        tolerance: leave early as soon as 1 - cos(z_k, z_{k-1}) <= tolerance; None runs all steps.
        owner: who asked (hashable); the scheduler is fair between owners.
        num_cached: rows whose keys and values are in this sequence's blocks.
        block_table: KV blocks in position order; the first `num_shared` came from the prefix cache.
        soft: s_1..s_k, opaque to the policy. Kept through a preemption, so that they are replayed, not recomputed.
        states: h_0..h_j, the hidden states that are final.
        top_tokens: per step the heaviest (token id, weight), if `top_k` asks for them.
    """

    __slots__ = (
        "block_table",
        "num_cached",
        "num_registered",
        "num_shared",
        "owner",
        "prefix_keys",
        "soft",
        "states",
        "steps",
        "token_ids",
        "tolerance",
        "top_k",
        "top_tokens",
    )

    def __init__(
        self,
        token_ids: tuple[int, ...],
        steps: int,
        *,
        tolerance: float | None = None,
        top_k: int = 0,
        owner: Any = None,
    ) -> None:
        self.token_ids = token_ids
        self.steps = steps
        self.tolerance = tolerance
        self.top_k = top_k
        self.owner = owner
        self.num_cached = 0
        self.num_shared = 0
        self.num_registered = 0
        self.block_table: list[int] = []
        self.prefix_keys: list[bytes] | None = None
        self.soft: list[Any] = []
        self.states: list[Any] = []
        self.top_tokens: list[list[tuple[int, float]]] = []

    @property
    def num_tokens(self) -> int:
        """N, the length of the prompt."""
        return len(self.token_ids)

    @property
    def num_rows(self) -> int:
        """Rows whose input is known: the prompt and the soft tokens made so far."""
        return len(self.token_ids) + len(self.soft)

    @property
    def num_pending(self) -> int:
        """Known rows that are not in the cache: what the next forwards have to compute."""
        return self.num_rows - self.num_cached

    @property
    def max_rows(self) -> int:
        """Rows at the very end: N + K."""
        return len(self.token_ids) + self.steps

    @property
    def num_outputs(self) -> int:
        """Rows at the end whose hidden states the engine needs: one, or in a sweep all that are not final yet."""
        return 1 + len(self.soft) - len(self.states)

    @property
    def is_refined(self) -> bool:
        """Whether h_K is final."""
        return len(self.states) > self.steps
