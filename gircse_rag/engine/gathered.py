"""Attention that gathers paged keys and values: any device, any dtype.

Sequences are cut into pieces, and pieces of similar size are padded into groups. Keys and values are gathered per group
for plain matrix products, which take half the time of PyTorch's CPU flash kernel (bfloat16, short texts).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gircse_rag.engine.attention import Segment, pad_tables, row_slots
from gircse_rag.engine.kv_cache import KVCache

QUERY_TILE = 64  # rows per piece: small pieces skip most masked scores and keep temporaries small
GROUP_SCORES = 300_000  # scores (heads x queries x keys) per group: float32 temporaries of about the L2 cache's size
TINY_SCORES = 4_000  # groups up to this size use float32: oneDNN's bfloat16 products have a higher fixed cost
GROUP_WASTE = 3_000  # (query, key) pairs of padding that cost less than another group's dozen kernel calls


class _Group(NamedTuple):
    """Pieces of sequences padded to one shape: B pieces, Lq queries, Lk keys."""

    rows: Tensor | None  # (B * Lq,) rows of the packed forward, None for all in order; padding repeats the last row
    blocks: Tensor  # (B * H_kv * Lk / block_size,) indices of (block, head) pairs
    masked: Tensor | None  # (B, 1, Lq, Lk) bool: True where a query must not attend to a key; None if nowhere
    shape: tuple[int, int, int]


class GatheredPlan:
    """Gathers keys and values per group, and attends with plain matrix products.

    Args:
        cache: a cache in the gathered layout (see kv_cache.py).
        segments: the forward's rows, in order.
    """

    def __init__(self, cache: KVCache, segments: list[Segment], num_heads: int) -> None:
        self._cache = cache
        self._num_heads = num_heads
        self._device = cache.keys[0].device
        self._zero = torch.zeros(1, device=self._device)  # adding it converts scores to float32 while scaling them
        heads = np.arange(cache.num_kv_heads)
        slots = row_slots(segments, cache.block_size)
        blocks, offsets = np.divmod(slots, cache.block_size)
        per_head = (blocks[:, None] * cache.num_kv_heads + heads) * cache.block_size + offsets[:, None]
        self._slots = self._tensor(per_head.reshape(-1))
        grouped = self._make_groups(segments)
        rows = [_padded_rows(group.pieces, group.num_queries) for group in grouped]
        self._groups = [self._build_group(group, index, len(slots)) for group, index in zip(grouped, rows, strict=True)]
        # where each row of the forward first occurs in the groups' padded outputs
        padded = np.concatenate([part.reshape(-1) for part in rows])
        index = np.unique(padded, return_index=True)[1]
        self._unpad_index = None if np.array_equal(index, np.arange(len(padded))) else self._tensor(index)

    def _make_groups(self, segments: list[Segment]) -> list[Shaped]:
        """Put all rows into groups."""
        grouped = _group_pieces(_split_segments(segments), self._num_heads)
        return [
            Shaped(pieces, max(piece.num_rows for piece in pieces), max(piece.length for piece in pieces))
            for pieces in grouped
        ]

    def _uses_float32(self, num_scores: int) -> bool:
        """Whether a group of half precision computes in float32."""
        return num_scores <= TINY_SCORES

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        cache = self._cache
        cache.write(layer, key, value, self._slots)
        width, kv_heads = cache.head_dim, cache.num_kv_heads
        repeats = self._num_heads // kv_heads
        keys, values = cache.flat_blocks[layer]
        outputs = []
        for group in self._groups:
            B, Lq, Lk = group.shape
            q = query if group.rows is None else query.index_select(0, group.rows)
            if Lq > 1:
                q = q.view(B, Lq, kv_heads, repeats, width).permute(0, 2, 3, 1, 4)
            q = q.reshape(B * kv_heads, repeats * Lq, width)
            k = keys.index_select(0, group.blocks).view(B * kv_heads, Lk, width)
            v = values.index_select(0, group.blocks).view(B * kv_heads, Lk, width)
            if q.dtype != torch.float32 and self._uses_float32(B * self._num_heads * Lq * Lk):
                q, k, v = q.float(), k.float(), v.float()
            if q.dtype == torch.float32:
                scores = torch.baddbmm(self._zero, q, k.transpose(1, 2), beta=0, alpha=scaling)
            else:  # scaling converts to float32
                scores = torch.add(self._zero, torch.bmm(q, k.transpose(1, 2)), alpha=scaling)
            if group.masked is not None:  # fill, not add: a NaN must be replaced too
                scores.view(B, self._num_heads, Lq, Lk).masked_fill_(group.masked, float("-inf"))
            weights = torch.softmax(scores, dim=-1)
            out = torch.bmm(weights if v.dtype == torch.float32 else weights.to(v.dtype), v)
            if Lq > 1:
                out = out.view(B, self._num_heads, Lq, width).transpose(1, 2)
            out = out.reshape(B * Lq, self._num_heads * width)
            outputs.append(out if out.dtype == query.dtype else out.to(query.dtype))
        padded = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return padded if self._unpad_index is None else padded.index_select(0, self._unpad_index)

    def _build_group(self, group: Shaped, rows: NDArray[np.int64], num_rows: int) -> _Group:
        pieces = group.pieces
        size, heads = self._cache.block_size, self._cache.num_kv_heads
        lengths = [piece.length for piece in pieces]
        tables = pad_tables(lengths, [piece.block_table for piece in pieces], size, group.num_keys)
        blocks = tables[:, None, :] * heads + np.arange(heads)[:, None]
        starts = np.array([piece.length - piece.num_rows - piece.row for piece in pieces])[:, None]
        Lk = tables.shape[1] * size
        masked = (np.arange(Lk) > (rows + starts)[:, :, None])[:, None]
        in_order = rows.size == num_rows and bool((rows.reshape(-1) == np.arange(num_rows)).all())
        return _Group(
            None if in_order else self._tensor(rows.reshape(-1)),
            self._tensor(blocks.reshape(-1)),
            self._tensor(masked) if masked.any() else None,
            (*rows.shape, Lk),
        )

    def _tensor(self, array: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(array).to(self._device)


class Piece(NamedTuple):
    """At most QUERY_TILE consecutive rows of one segment."""

    block_table: list[int]
    row: int  # first row, in the packed forward
    num_rows: int
    length: int  # number of keys that the last row attends to


class Shaped(NamedTuple):
    """Pieces that are padded to one shape."""

    pieces: list[Piece]
    num_queries: int
    num_keys: int  # at least; rounded up to whole blocks


def _padded_rows(pieces: list[Piece], num_queries: int) -> NDArray[np.int64]:
    """(B, Lq): the rows of each piece in the packed forward, padded to one length by repeating the last."""
    counts = np.array([piece.num_rows for piece in pieces])[:, None]
    offsets = np.minimum(np.arange(num_queries), counts - 1)
    rows: NDArray[np.int64] = np.array([piece.row for piece in pieces])[:, None] + offsets
    return rows


def _split_segments(segments: list[Segment]) -> list[Piece]:
    pieces = []
    row = 0
    for segment in segments:
        for start in range(0, segment.num_rows, QUERY_TILE):
            count = min(QUERY_TILE, segment.num_rows - start)
            length = segment.length - segment.num_rows + start + count
            pieces.append(Piece(segment.block_table, row + start, count, length))
        row += segment.num_rows
    return pieces


def _group_pieces(pieces: list[Piece], num_heads: int) -> list[list[Piece]]:
    """Group pieces greedily, in order of size, while padding and temporaries stay small."""
    groups: list[list[Piece]] = []
    pairs = longest = 0  # of the last group: (query, key) pairs without padding, and most keys
    for piece in sorted(pieces, key=lambda piece: (piece.num_rows, piece.length)):
        real = piece.num_rows * piece.length
        if groups:
            new_longest = max(longest, piece.length)
            padded = (len(groups[-1]) + 1) * piece.num_rows * new_longest
            waste = padded - pairs - real
            if padded * num_heads <= GROUP_SCORES and waste <= max(GROUP_WASTE, padded // 8):
                groups[-1].append(piece)
                pairs += real
                longest = new_longest
                continue
        groups.append([piece])
        pairs, longest = real, piece.length
    return groups
