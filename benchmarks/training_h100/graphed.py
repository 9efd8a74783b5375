"""A whole training step as one CUDA graph.

A step of this method is about 20,000 small kernels; launching them one by one takes a GPU's host two to three times as
long as the GPU needs to run them. A graph is launched at once, but its shapes are fixed: `Shape` is a set of grids that
every batch of some tasks fits into (padded, hence some wasted arithmetic), and a `GraphedStep` replays forward, loss
and backward on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gircse_rag.errors import InputError
from gircse_rag.training.losses import icr_loss
from gircse_rag.training.packing import Group, Packed, cuts
from gircse_rag.training.unrolled import Pooling, UnrolledRefinement

ALIGNMENT = 8  # widths are multiples of it: attention kernels like that, and nearby lengths then share a group


@dataclass(frozen=True)
class Shape:
    """Grids for a batch sorted by length: the shortest `counts[0]` texts in a grid `widths[0]` wide, and so on."""

    counts: tuple[int, ...]
    widths: tuple[int, ...]

    @classmethod
    def enclosing(cls, lengths: np.ndarray, groups: int) -> Shape:
        """The smallest shape of `groups` grids for (batches, n) lengths, each batch sorted ascending."""
        envelope = -(-lengths.max(axis=0) // ALIGNMENT) * ALIGNMENT
        found = cuts(envelope, groups)
        return cls(tuple(end - first for first, end in found), tuple(int(envelope[end - 1]) for _, end in found))

    @property
    def tokens(self) -> int:
        """Rows of the prefill, padding included."""
        return sum(count * width for count, width in zip(self.counts, self.widths, strict=True))

    def place(self, texts: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
        """Token ids in the grids.

        Returns:
            ids (tokens,), lengths (n,) and last (n,) in sorted order, inverse (n,): the sorted row of each text; int64.

        Raises:
            InputError: the batch has another number of texts, or does not fit.
        """
        lengths = np.array([len(text) for text in texts])
        order = np.argsort(lengths, kind="stable")
        limits = np.repeat(self.widths, self.counts)
        if len(lengths) != len(limits) or (lengths[order] > limits).any():
            raise InputError("the batch does not fit the shape that its graph was captured for")
        starts = np.concatenate(([0], np.cumsum(limits)))[:-1]
        lengths = lengths[order]
        ids = np.zeros(self.tokens, dtype=np.int64)
        ends = np.cumsum(lengths)
        slots = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths) + np.repeat(starts, lengths)
        ids[slots] = np.concatenate([texts[i] for i in order])
        return {
            "ids": ids,
            "lengths": lengths,
            "last": starts + lengths - 1,
            "inverse": np.argsort(order, kind="stable"),
        }


class GraphedStep:
    """Forward, ICR loss and backward for batches of one shape: `rows` queries, each with its positive and one negative.

    Gradients are written (not added) into the parameters' `.grad`, which must exist and stay the same tensors.

    Args:
        module: the model. Until `capture` is called (on a CUDA device) the same code runs kernel by kernel.
    """

    def __init__(
        self,
        module: UnrolledRefinement,
        shape: Shape,
        rows: int,
        steps: int,
        *,
        pooling: Pooling = "refine",
        temperature: float = 0.02,
        reg_weight: float = 1.0,
    ) -> None:
        if sum(shape.counts) != 3 * rows:
            raise InputError(f"a shape for {sum(shape.counts)} texts cannot hold {rows} rows of three")
        self.module, self.shape, self.rows, self.steps, self.pooling = module, shape, rows, steps, pooling
        self.temperature, self.reg_weight = temperature, reg_weight
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        device = self.parameters[0].device
        n = 3 * rows
        self.inputs = {
            name: torch.zeros(size, dtype=torch.int64, device=device)
            for name, size in (("ids", shape.tokens), ("lengths", n), ("last", n), ("inverse", n))
        }
        self.inputs["lengths"].fill_(1)
        self.inputs["not_negatives"] = torch.zeros(rows, 2 * rows, dtype=torch.bool, device=device)
        widths, counts = np.array(shape.widths), np.array(shape.counts)
        self.positions = torch.from_numpy(
            np.concatenate([np.tile(np.arange(w), c) for w, c in zip(widths, counts, strict=True)])
        )
        self.owners = torch.from_numpy(np.repeat(np.arange(n), np.repeat(widths, counts))).to(device)
        self.positions = self.positions.to(device)
        self.graph: torch.cuda.CUDAGraph | None = None

    @property
    def pool(self) -> Any:
        """The graph's memory pool."""
        return None if self.graph is None else self.graph.pool()

    def __call__(self, texts: Sequence[Sequence[int]], not_negatives: np.ndarray) -> Tensor:
        """Gradients of one batch.

        Args:
            texts: B queries, then positive, negative, positive, negative, ...
            not_negatives: (B, 2 B) bool.

        Returns:
            (3 + K,) float32 on the device, overwritten by the next call: total, regularization, L_1..L_K, and the
            `spread` of the batch's soft tokens, averaged over the steps (0 for a pooling baseline).
        """
        for name, array in {**self.shape.place(texts), "not_negatives": not_negatives}.items():
            tensor = torch.from_numpy(array)
            if self.graph is not None:
                tensor = tensor.pin_memory()
            self.inputs[name].copy_(tensor, non_blocking=True)
        if self.graph is None:
            return self._run()
        self.graph.replay()
        return self.numbers

    def warm_up(self) -> None:
        """Load every kernel the graph will need, with one step of refinement.

        Do this for all shapes before capturing any: it takes as much memory as the step, outside the graphs' pool.
        """
        steps, self.steps = self.steps, 1
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._run()
        torch.cuda.current_stream().wait_stream(stream)
        self.steps = steps

    def capture(self, pool: Any = None) -> None:
        """Record the graph. `pool`: that of another GraphedStep, to share memory; their replays must not overlap."""
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool=pool):
            self.numbers = self._run()

    def _run(self) -> Tensor:
        torch._foreach_zero_([p.grad for p in self.parameters if p.grad is not None])
        means: list[Tensor] = []
        self.module.on_soft_token = lambda weights: means.append(weights.detach().mean(dim=0, dtype=torch.float32))
        try:
            states = self.module(self._packed(), self.steps, self.pooling)
        finally:
            self.module.on_soft_token = None
        loss = icr_loss(
            states[: self.rows],
            states[self.rows :],
            self.temperature,
            self.reg_weight,
            not_negatives=self.inputs["not_negatives"],
        )
        torch.autograd.backward(loss.total)
        entropy = spread(torch.stack(means)).mean() if means else loss.total.new_zeros(())
        return torch.cat((torch.stack((loss.total, loss.regularization)), loss.stepwise, entropy[None])).detach()

    def _packed(self) -> Packed:
        lengths, kv_heads = self.inputs["lengths"], self.module.config.num_key_value_heads
        groups, first = [], 0
        for count, width in zip(self.shape.counts, self.shape.widths, strict=True):
            outside = torch.arange(width, device=lengths.device) >= lengths[first : first + count, None]
            bias = torch.zeros(count, width, dtype=self.module.dtype, device=lengths.device).masked_fill(
                outside, float("-inf")
            )
            groups.append(
                Group(count * width, count, width, None, bias[:, None].expand(-1, kv_heads, -1).reshape(-1, 1, width))
            )
            first += count
        return Packed(
            n=len(lengths),
            longest=self.shape.widths[-1],
            ids=self.inputs["ids"],
            positions=self.positions,
            owners=self.owners.masked_fill(self.positions >= lengths[self.owners], len(lengths)),
            lengths=lengths,
            last=self.inputs["last"],
            groups=groups,
            inverse=self.inputs["inverse"],
        )


def spread(means: Tensor) -> Tensor:
    """(K, V) mean soft tokens of a batch -> (K,) their Renyi entropy of order 2, in nats.

    0 when every text says the same one token at that step: refinement then appends a constant.
    """
    return -torch.log(means.square().sum(dim=-1))
