"""Attention over paged keys and values by gathering them: any device, any dtype.

Like-sized pieces of sequences are padded into a few groups, whose keys and values are gathered from the blocks for
plain matrix products. PyTorch's CPU flash kernel takes twice as long on sequences of embedding length in bfloat16.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gircse_rag.engine.attention import Segment, row_slots
from gircse_rag.engine.kv_cache import KVCache

QUERY_TILE = 64  # rows of one sequence in one piece: causal work beyond the diagonal is skipped, temporaries stay small
GROUP_SCORES = 300_000  # scores (heads x queries x keys) a group: float32 temporaries of about the L2 cache
TINY_SCORES = 4_000  # below, a product in float32 starts sooner than oneDNN's in bfloat16
GROUP_WASTE = 3_000  # padded (query, key) pairs that cost less than another group's dozen calls


class _Group(NamedTuple):
    """Pieces of sequences padded to one shape: B pieces, Lq queries, Lk keys."""

    rows: Tensor  # (B * Lq,) rows of the packed forward; padding repeats a piece's last row
    blocks: Tensor  # (B * H_kv * Lk / block_size,) heads of blocks
    hidden: Tensor  # (B, 1, Lq, Lk) bool: where query may not see key
    shape: tuple[int, int, int]


class GatheredPlan:
    """Gathers and multiplies.

    Args:
        cache: in the gathered layout.
        segments: the forward's rows, in order.
    """

    def __init__(self, cache: KVCache, segments: list[Segment], num_heads: int) -> None:
        self._cache = cache
        self._num_heads = num_heads
        self._device = cache.keys[0].device
        self._zero = torch.zeros(1, device=self._device)  # adding it makes scores float32 in the pass that scales them
        heads = np.arange(cache.num_kv_heads)
        slots = row_slots(segments, cache.block_size)
        blocks, offsets = np.divmod(slots, cache.block_size)
        flat = (blocks[:, None] * cache.num_kv_heads + heads) * cache.block_size + offsets[:, None]
        self._slots = self._tensor(flat.reshape(-1))
        pieces = _pieces(segments)
        groups = _grouped(pieces, num_heads)
        self._groups = [self._group([pieces[i] for i in members], segments) for members in groups]
        order = self._order(pieces, groups)
        self._order_index = None if (order == np.arange(len(order))).all() else self._tensor(order)
        self._num_rows = len(order)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        cache = self._cache
        cache.write(layer, key, value, self._slots)
        width, kv_heads = cache.head_dim, cache.num_kv_heads
        repeats = self._num_heads // kv_heads
        keys = cache.keys[layer].view(-1, cache.block_size * width)
        values = cache.values[layer].view(-1, cache.block_size * width)
        outputs = []
        for group in self._groups:
            B, Lq, Lk = group.shape
            q = query.index_select(0, group.rows)
            if Lq > 1:
                q = q.view(B, Lq, kv_heads, repeats, width).permute(0, 2, 3, 1, 4)
            q = q.reshape(B * kv_heads, repeats * Lq, width)
            k = keys.index_select(0, group.blocks).view(B * kv_heads, Lk, width)
            v = values.index_select(0, group.blocks).view(B * kv_heads, Lk, width)
            if B * self._num_heads * Lq * Lk <= TINY_SCORES:
                q, k, v = q.float(), k.float(), v.float()
            scores = torch.bmm(q, k.transpose(1, 2)).view(B, self._num_heads, Lq, Lk)
            scores.masked_fill_(group.hidden, float("-inf"))  # not added: it has to cover NaN
            weights = torch.softmax(torch.add(self._zero, scores, alpha=scaling), dim=-1).to(v.dtype)
            out = torch.bmm(weights.view(B * kv_heads, repeats * Lq, Lk), v)
            if Lq > 1:
                out = out.view(B, self._num_heads, Lq, width).transpose(1, 2)
            outputs.append(out.reshape(B * Lq, self._num_heads * width).to(query.dtype))
        padded = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return padded if self._order_index is None else padded.index_select(0, self._order_index)

    def _group(self, pieces: list[_Piece], segments: list[Segment]) -> _Group:
        size, heads = self._cache.block_size, self._cache.num_kv_heads
        B = len(pieces)
        Lq = max(piece.num_rows for piece in pieces)
        num_blocks = max(-(-piece.length // size) for piece in pieces)
        tables = np.zeros((B, num_blocks), dtype=np.int64)
        for number, piece in enumerate(pieces):
            used = -(-piece.length // size)
            tables[number, :used] = segments[piece.segment].block_table[:used]
        blocks = tables[:, None, :] * heads + np.arange(heads)[:, None]
        counts = np.array([piece.num_rows for piece in pieces])[:, None]
        steps = np.minimum(np.arange(Lq), counts - 1)
        rows = np.array([piece.row for piece in pieces])[:, None] + steps
        positions = np.array([piece.length for piece in pieces])[:, None] - counts + steps
        hidden = (np.arange(num_blocks * size) > positions[:, :, None])[:, None]
        return _Group(
            self._tensor(rows.reshape(-1)),
            self._tensor(blocks.reshape(-1)),
            self._tensor(hidden),
            (B, Lq, num_blocks * size),
        )

    def _order(self, pieces: list[_Piece], groups: list[list[int]]) -> NDArray[np.int64]:
        """For each row of the forward its place in the groups' padded outputs."""
        order = np.empty(sum(piece.num_rows for piece in pieces), dtype=np.int64)
        start = 0
        for members, group in zip(groups, self._groups, strict=True):
            Lq = group.shape[1]
            for number, member in enumerate(members):
                piece = pieces[member]
                first = start + number * Lq
                order[piece.row : piece.row + piece.num_rows] = np.arange(first, first + piece.num_rows)
            start += len(members) * Lq
        return order

    def _tensor(self, array: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(array).to(self._device)


class _Piece(NamedTuple):
    """At most QUERY_TILE consecutive rows of one segment."""

    segment: int
    row: int  # the first, in the packed forward
    num_rows: int
    length: int  # keys that its last row sees


def _pieces(segments: list[Segment]) -> list[_Piece]:
    pieces = []
    row = 0
    for number, segment in enumerate(segments):
        for start in range(0, segment.num_rows, QUERY_TILE):
            count = min(QUERY_TILE, segment.num_rows - start)
            pieces.append(_Piece(number, row + start, count, segment.length - segment.num_rows + start + count))
        row += segment.num_rows
    return pieces


def _grouped(pieces: list[_Piece], num_heads: int) -> list[list[int]]:
    """Greedy: in the order of their size, pieces join a group while padding and temporaries stay small."""
    groups: list[list[int]] = []
    pairs = longest = 0
    by_size = sorted(range(len(pieces)), key=lambda i: (pieces[i].num_rows, pieces[i].length, i))
    for number in by_size:
        piece = pieces[number]
        own = piece.num_rows * piece.length
        if groups:
            longest_then = max(longest, piece.length)
            padded = (len(groups[-1]) + 1) * piece.num_rows * longest_then
            waste = padded - pairs - own
            if padded * num_heads <= GROUP_SCORES and waste <= max(GROUP_WASTE, padded // 8):
                groups[-1].append(number)
                pairs += own
                longest = longest_then
                continue
        groups.append([number])
        pairs, longest = own, piece.length
    return groups
