"""Attention in which the shapes around a row depend on the row's position alone, for `deterministic=True`.

    prompt rows   QUERIES at a time, the rest of a piece padded; a piece does not cross a multiple of KEYS
    soft rows     one at a time
    keys          of all rows before the next multiple of KEYS; those behind a row are masked

So a row is computed by the same kernels with the same shapes, whatever else is in the forward, however its prompt was
cut into chunks, and whether its first rows came from the prefix cache.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

from gircse_rag.engine.attention import Segment
from gircse_rag.engine.gathered import GROUP_SCORES, GatheredPlan, Piece, Shaped
from gircse_rag.engine.kv_cache import KVCache

QUERIES = 16
KEYS = 64


class FixedPlan(GatheredPlan):
    """A GatheredPlan with fixed shapes. Rows of the forward behind the last segment are padding and come out as zeros.

    Args:
        segments: with their number of prompt tokens.
    """

    def __init__(self, cache: KVCache, segments: list[Segment], num_heads: int) -> None:
        self._num_rows = sum(segment.num_rows for segment in segments)
        super().__init__(cache, segments, num_heads)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        used = self._num_rows
        found = super().attend(layer, query[:used], key[:used], value[:used], scaling)
        return torch.cat((found, found.new_zeros(len(query) - used, found.shape[1])))

    def _make_groups(self, segments: list[Segment]) -> list[Shaped]:
        by_shape: dict[tuple[int, int], list[Piece]] = defaultdict(list)
        row = 0
        for segment in segments:
            start = position = segment.length - segment.num_rows
            while position < segment.length:
                if position < segment.num_tokens:
                    end = min(position + QUERIES, segment.num_tokens, _next_multiple(position + 1), segment.length)
                    size = QUERIES
                else:
                    end, size = position + 1, 1
                piece = Piece(segment.block_table, row + position - start, end - position, end)
                by_shape[size, _next_multiple(end)].append(piece)
                position = end
            row += segment.num_rows
        groups = []
        for (size, keys), pieces in by_shape.items():
            most = max(1, GROUP_SCORES // (size * keys * self._num_heads))
            groups += [Shaped(pieces[first : first + most], size, keys) for first in range(0, len(pieces), most)]
        return groups

    def _uses_float32(self, num_scores: int) -> bool:
        return False


def _next_multiple(number: int) -> int:
    """The first multiple of KEYS that is at least `number`."""
    return -(-number // KEYS) * KEYS
