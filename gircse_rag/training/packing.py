"""Pack a batch of texts into one row of tokens, sorted by length, with small padded grids for attention.

Texts of one task share a prefix: the instruction. Under causal attention its states are the same for all of them, in
every layer. They are computed once, at the front of the batch, and every text with this prefix attends to them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gircse_rag.errors import InputError

Texts = Sequence[Sequence[int]]  # token ids
MIN_SHARED_TOKENS = 4  # a shorter common prefix saves less than its extra attention group costs


@dataclass(frozen=True)
class Group:
    """`n` texts of similar length, padded to a grid of `n` rows and `width` columns.

    Attributes:
        tokens: number of tokens t; groups are consecutive in the sorted texts and in the packed tokens.
        slots: (t,) int64, position of each token in the (n * width) grid; None if the grid has no padding.
        bias: (n * kv_heads, 1, prefix + width), 0 on tokens and -inf on padding.
        prefix: number of shared tokens before each text of the group; they are not in the grid.
    """

    tokens: int
    n: int
    width: int
    slots: Tensor | None
    bias: Tensor
    prefix: int = 0


@dataclass(frozen=True)
class Packed:
    """A packed batch in sorted order; `restore` returns to the caller's order.

    Attributes:
        ids, positions, owners: (T,) token ids, positions within the text, and the text's row (n for the shared prefix).
        lengths, last: (n,) tokens per text, including the prefix, and the packed row of its last token.
        prefix: number of packed tokens at the front that are the shared prefix.
    """

    n: int
    longest: int
    ids: Tensor
    positions: Tensor
    owners: Tensor
    lengths: Tensor
    last: Tensor
    groups: list[Group]
    inverse: Tensor
    prefix: int = 0

    @classmethod
    def build(
        cls, texts: Texts, groups: int, kv_heads: int, device: torch.device, dtype: torch.dtype, *, share: bool = False
    ) -> Packed:
        """Pack token ids into at most `groups` groups; with `share`, a common prefix is packed once.

        Raises:
            InputError: there is no text, or a text has no tokens.
        """
        lengths = np.array([len(text) for text in texts], dtype=np.int64)
        if not len(lengths) or not lengths.all():
            index = int(np.argmin(lengths)) if len(lengths) else None
            raise InputError("a text without tokens cannot be refined; remove it", index=index)
        head, has_prefix = common_prefix(texts) if share else (0, np.zeros(len(lengths), dtype=bool))
        order = np.lexsort((lengths, has_prefix))
        lengths, has_prefix = lengths[order], has_prefix[order]
        heads = np.where(has_prefix, head, 0)
        own = lengths - heads
        starts = head + np.concatenate(([0], np.cumsum(own)))
        parts = [np.asarray(texts[i][heads[j] :], dtype=np.int64) for j, i in enumerate(order)]
        ids = np.concatenate([np.asarray(texts[order[-1]][:head], dtype=np.int64), *parts])
        owners = np.concatenate((np.full(head, len(order)), np.repeat(np.arange(len(order)), own)))
        positions = np.arange(len(ids))
        positions[head:] += (heads - starts[:-1])[owners[head:]]

        def to(array: Any) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(device, non_blocking=True)

        built = []
        unshared = int(len(has_prefix) - has_prefix.sum())
        parts_of = [(first, end) for first, end in ((0, unshared), (unshared, len(has_prefix))) if first < end]
        for offset, stop in parts_of:
            for first, end in group_by_length(own[offset:stop], max(1, groups // len(parts_of))):
                first, end = first + offset, end + offset
                tokens = slice(int(starts[first]), int(starts[end]))
                n, width, before = end - first, int(own[end - 1]), int(heads[first])
                full = int(own[first]) == width
                slots = None if full else to((owners[tokens] - first) * width + positions[tokens] - before)
                columns = np.arange(-before, width)
                bias = to(np.where(columns < own[first:end, None], 0.0, -np.inf).repeat(kv_heads, 0))[:, None].to(dtype)
                built.append(Group(tokens.stop - tokens.start, n, width, slots, bias, before))
        last, inverse, longest = to(starts[1:] - 1), to(np.argsort(order, kind="stable")), int(lengths.max())
        rows = to(ids), to(positions), to(owners), to(lengths), last
        return cls(len(order), longest, *rows, built, inverse, head)

    def restore(self, rows: Tensor) -> Tensor:
        """Reorder rows (n, ...) from sorted order to the caller's order."""
        return take(rows, self.inverse)


def pad(rows: Tensor, group: Group) -> Tensor:
    """Pad the tokens (t, c) of a group with zeros to its grid (n * width, c)."""
    if group.slots is None:
        return rows
    return rows.new_zeros(group.n * group.width, rows.shape[1]).index_copy(0, group.slots, rows)


def unpad(grid: Tensor, group: Group) -> Tensor:
    """Drop the padding: (n * width, c) -> (t, c), the inverse of `pad`."""
    return grid if group.slots is None else take(grid, group.slots)


def take(rows: Tensor, index: Tensor) -> Tensor:
    """rows[index] for distinct indices."""
    taken: Tensor = _Take.apply(rows, index)  # type: ignore[no-untyped-call]
    return taken


class _Take(torch.autograd.Function):
    """No row is taken twice, so the gradient is a plain copy: faster than the atomic additions of indexing."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.size = len(rows)
        return rows.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (index,) = ctx.saved_tensors
        return grads[0].new_zeros(ctx.size, *grads[0].shape[1:]).index_copy(0, index, grads[0]), None


def common_prefix(texts: Texts) -> tuple[int, np.ndarray]:
    """Find the prefix that most texts share.

    Returns:
        Its length (0 if it is too short to share), and (n,) bool: which texts start with it. All these are longer.
    """
    keys = [tuple(text[:MIN_SHARED_TOKENS]) if len(text) > MIN_SHARED_TOKENS else None for text in texts]
    no_text = np.zeros(len(texts), dtype=bool)
    counted = Counter(key for key in keys if key is not None).most_common(1)
    if not counted or counted[0][1] < 2:
        return 0, no_text
    has_prefix = np.array([key == counted[0][0] for key in keys])
    members = [text for text, member in zip(texts, has_prefix, strict=True) if member]
    common = takewhile(lambda column: len(set(column)) == 1, zip(*members, strict=False))
    return min(sum(1 for _ in common), min(map(len, members)) - 1), has_prefix


def group_by_length(lengths: np.ndarray, groups: int) -> list[tuple[int, int]]:
    """Cut sorted lengths into at most `groups` runs [start, end) with the least padding, by dynamic programming."""
    ends = np.concatenate((np.nonzero(np.diff(lengths))[0] + 1, [len(lengths)]))
    widths = lengths[ends - 1]
    starts = np.concatenate(([0], ends[:-1]))
    # cost[i, j]: grid size of one group from the i-th to the j-th distinct length
    cost = np.where(starts[:, None] < ends[None, :], (ends[None, :] - starts[:, None]) * widths[None, :], np.inf)
    best, choices = cost[0], []
    for _ in range(min(groups, len(ends)) - 1):
        candidates = np.concatenate((np.zeros(1), best[:-1]))[:, None] + cost
        choices.append(np.argmin(candidates, axis=0))
        best = candidates.min(axis=0)
    cuts, last = [], len(ends) - 1
    for choice in reversed(choices):
        first = int(choice[last])
        cuts.append((int(starts[first]), int(ends[last])))
        last = first - 1
        if first == 0:
            return cuts[::-1]
    cuts.append((0, int(ends[last])))
    return cuts[::-1]


def token_chunks(texts: Sequence[Sequence[int]], indices: Sequence[int], limit: int | None) -> list[list[int]]:
    """Split text indices into chunks of at most `limit` tokens; a longer text gets a chunk of its own."""
    if limit is None:
        return [list(indices)]
    chunks: list[list[int]] = [[]]
    room = limit
    for index in indices:
        room -= len(texts[index])
        if room < 0 and chunks[-1]:
            chunks.append([])
            room = limit - len(texts[index])
        chunks[-1].append(index)
    return chunks
