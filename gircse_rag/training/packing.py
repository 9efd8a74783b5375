"""A batch of texts as one row of tokens, sorted by length, and the small padded grids in which attention sees it.

Texts of one task begin with the same instruction. Its tokens are the same for all of them, under causal attention to
the last layer: they are computed once, in front of the batch, and every text that begins so attends to them.
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

WORTH_SHARING = 4  # tokens: a shorter beginning in common saves less than its own group of attention costs


@dataclass(frozen=True)
class Group:
    """Texts of like length: `n` of them in a grid `width` wide.

    Attributes:
        tokens: how many; groups follow each other in the batch's sorted texts and packed tokens.
        slots: (t,) int64, where each of the group's tokens sits in the (n * width) grid; None when the grid is full.
        bias: (n * kv_heads, 1, prefix + width), 0 on tokens and -inf on padding.
        prefix: how many shared tokens come before each of the group's texts; they are not in the grid.
    """

    tokens: int
    n: int
    width: int
    slots: Tensor | None
    bias: Tensor
    prefix: int = 0


@dataclass(frozen=True)
class Packed:
    """A batch, packed. Everything is in sorted order; `restore` goes back to the caller's.

    Attributes:
        ids, positions, owners: (T,) token ids, positions within the text, and the text's row (n for padding and for
            the shared prefix).
        lengths, last: (n,) tokens a text, its prefix included, and the packed row of its last token.
        prefix: the first so many of the packed tokens stand for the beginning of the texts in groups with a prefix.
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
        cls,
        texts: Sequence[Sequence[int]],
        groups: int,
        kv_heads: int,
        device: torch.device,
        dtype: torch.dtype,
        *,
        share: bool = False,
    ) -> Packed:
        """Pack token ids; `share` computes a beginning that many texts have in common only once.

        Raises:
            InputError: there is no text, or one has no tokens.
        """
        lengths = np.array([len(text) for text in texts], dtype=np.int64)
        if not len(lengths) or not lengths.all():
            index = int(np.argmin(lengths)) if len(lengths) else None
            raise InputError("a text without tokens cannot be refined; leave it out", index=index)
        head, begins = common_prefix(texts) if share else (0, np.zeros(len(lengths), dtype=bool))
        order = np.lexsort((lengths, begins))
        lengths, begins = lengths[order], begins[order]
        heads = np.where(begins, head, 0)
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
        bare = int(len(begins) - begins.sum())
        parts_of = [(first, end) for first, end in ((0, bare), (bare, len(begins))) if first < end]
        for offset, stop in parts_of:
            for first, end in cuts(own[offset:stop], max(1, groups // len(parts_of))):
                first, end = first + offset, end + offset
                tokens = slice(int(starts[first]), int(starts[end]))
                n, width, before = end - first, int(own[end - 1]), int(heads[first])
                full = int(own[first]) == width
                slots = None if full else to((owners[tokens] - first) * width + positions[tokens] - before)
                columns = np.arange(-before, width)
                bias = to(np.where(columns < own[first:end, None], 0.0, -np.inf).repeat(kv_heads, 0))[:, None].to(dtype)
                built.append(Group(tokens.stop - tokens.start, n, width, slots, bias, before))
        return cls(
            len(order),
            int(lengths.max()),
            to(ids),
            to(positions),
            to(owners),
            to(lengths),
            to(starts[1:] - 1),
            built,
            to(np.argsort(order, kind="stable")),
            head,
        )

    def restore(self, rows: Tensor) -> Tensor:
        """(n, ...) in sorted order -> in the caller's."""
        return take(rows, self.inverse)


def pad(rows: Tensor, group: Group) -> Tensor:
    """(t, c) tokens of a group -> (n * width, c), zeros where there is no token."""
    if group.slots is None:
        return rows
    return rows.new_zeros(group.n * group.width, rows.shape[1]).index_copy(0, group.slots, rows)


def unpad(grid: Tensor, group: Group) -> Tensor:
    """(n * width, c) -> (t, c): the inverse of `pad`."""
    if group.slots is None:
        return grid
    return take(grid, group.slots)


def take(rows: Tensor, index: Tensor) -> Tensor:
    """rows[index] for indices that are all different."""
    taken: Tensor = _Take.apply(rows, index)  # type: ignore[no-untyped-call]
    return taken


class _Take(torch.autograd.Function):
    """Since no row is taken twice, the gradient is a copy and not a sum of atomics."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.size = len(rows)
        return rows.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (index,) = ctx.saved_tensors
        return grads[0].new_zeros(ctx.size, *grads[0].shape[1:]).index_copy(0, index, grads[0]), None


def common_prefix(texts: Sequence[Sequence[int]]) -> tuple[int, np.ndarray]:
    """The beginning that most texts share.

    Returns:
        its length, 0 if none is worth sharing, and (n,) bool: which texts begin with it. Each of them has more tokens.
    """
    keys = [tuple(text[:WORTH_SHARING]) if len(text) > WORTH_SHARING else None for text in texts]
    none = np.zeros(len(texts), dtype=bool)
    counted = Counter(key for key in keys if key is not None).most_common(1)
    if not counted or counted[0][1] < 2:
        return 0, none
    begins = np.array([key == counted[0][0] for key in keys])
    members = [text for text, member in zip(texts, begins, strict=True) if member]
    alike = takewhile(lambda column: len(set(column)) == 1, zip(*members, strict=False))
    return min(sum(1 for _ in alike), min(map(len, members)) - 1), begins


def cuts(lengths: np.ndarray, groups: int) -> list[tuple[int, int]]:
    """Cut sorted lengths into at most `groups` runs with the least padding (dynamic programming over lengths)."""
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
