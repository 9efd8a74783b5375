"""Attention over paged keys and values.

    o_i = softmax(scaling * q_i K_{<=i}^T) V_{<=i}        per head; K, V from the sequence's blocks

A plan is made once per forward and used by every layer. Each layer first writes all rows of the forward, then attends,
so a row may read rows that another sequence computes in the same forward.

* PagedPlan (float16 and bfloat16 on CUDA): torch's varlen_attn reads the blocks through a block table.
* FixedPlan (fixed.py): for `deterministic`, where the shapes around a row depend on its position alone.
* GatheredPlan (gathered.py): everywhere else, and where this build of torch lacks that kernel or has a faulty one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from gircse_rag.engine.kv_cache import PAGED_BLOCK_SIZE, KVCache
from gircse_rag.errors import GircseWarning
from gircse_rag.weights import DecoderConfig

KERNEL_TOLERANCE = 0.02  # bfloat16 rounding causes 0.002; attending to one key too many or too few, at least 0.07


class Segment(NamedTuple):
    """Consecutive rows of one sequence in a packed forward.

    Attributes:
        num_rows: number of rows.
        length: rows of the sequence up to and including the segment's last one.
        block_table: blocks of the sequence, at least enough for `length` rows.
        num_tokens: rows of the sequence that are prompt tokens; only FixedPlan asks.
    """

    num_rows: int
    length: int
    block_table: list[int]
    num_tokens: int = 0


class Plan(Protocol):
    """How the layers of one forward attend to the cache."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Write key and value (T, H_kv, D) to the cache, then attend with query (T, H, D). Returns (T, H * D).

        D may be split into several dimensions.
        """
        ...


def varlen_attn(*arguments: Any, **options: Any) -> Any:
    """torch's varlen_attn. Importing it takes as long as importing torch, and only CUDA needs it."""
    from torch.nn.attention.varlen import varlen_attn as attend

    return attend(*arguments, **options)


class PagedPlan:
    """Attends with varlen_attn, which reads keys and values in place.

    num_splits=1 fixes the order of summation of a row, whatever else is in the batch.

    Args:
        cache: a cache in the paged layout.
        segments: the forward's rows, in order.
    """

    def __init__(self, cache: KVCache, segments: list[Segment]) -> None:
        self._cache = cache
        device = cache.keys[0].device
        counts = [segment.num_rows for segment in segments]
        lengths = [segment.length for segment in segments]
        self._longest = max(counts), max(lengths)
        tables = pad_tables(lengths, [segment.block_table for segment in segments], cache.block_size)
        # one transfer for all of the kernel's arguments, from pinned memory, so the host does not wait
        parts = [row_slots(segments, cache.block_size), np.cumsum([0, *counts]), np.array(lengths), tables.reshape(-1)]
        packed = torch.from_numpy(np.concatenate(parts).astype(np.int32))
        if device.type == "cuda":
            packed = packed.pin_memory().to(device, non_blocking=True)
        slots, self._starts, self._lengths, flat = torch.split(packed, [len(part) for part in parts])
        self._slots = slots.long()
        self._tables = flat.view(tables.shape)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        self._cache.write(layer, key, value, self._slots)
        out = varlen_attn(
            query.contiguous(),
            self._cache.keys[layer],
            self._cache.values[layer],
            self._starts,
            None,
            *self._longest,
            scale=scaling,
            window_size=(-1, 0),
            enable_gqa=True,
            seqused_k=self._lengths,
            block_table=self._tables,
            num_splits=1,
        )
        assert isinstance(out, Tensor)  # a pair only if auxiliary outputs are requested
        return out.flatten(1)


def has_paged_kernel(config: DecoderConfig, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether varlen_attn works on paged keys and values here, compared once with plain attention."""
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return False
    try:
        difference = kernel_difference(config, device, dtype)
    except (RuntimeError, TypeError, ImportError):  # an older torch, or a GPU without the kernel
        return False
    if difference < KERNEL_TOLERANCE:  # False for NaN
        return True
    warnings.warn(
        f"this torch's paged attention differs from plain attention by {difference:.2g} on {device} in {dtype}; the "
        "engine gathers keys and values instead, which is correct but slower",
        GircseWarning,
        stacklevel=2,
    )
    return False


def kernel_difference(config: DecoderConfig, device: torch.device, dtype: torch.dtype) -> float:
    """Largest difference of PagedPlan from plain attention."""
    return plan_difference(PagedPlan, config, device, dtype, paged=True)


def plan_difference(
    make_plan: Callable[[KVCache, list[Segment]], Plan],
    config: DecoderConfig,
    device: torch.device,
    dtype: torch.dtype,
    *,
    paged: bool,
) -> float:
    """Largest difference of a plan from attention in float32, on a batch of 64 prompt rows and one soft row.

    Args:
        paged: the layout of the cache that the plan reads.
    """
    one_layer = replace(config, num_hidden_layers=1)
    cache = KVCache(one_layer, 6, paged=paged, block_size=PAGED_BLOCK_SIZE, dtype=dtype, device=device)
    segments = [Segment(64, PAGED_BLOCK_SIZE + 30, [5, 2]), Segment(1, PAGED_BLOCK_SIZE + 1, [1, 4])]
    counts = [segment.num_rows for segment in segments]
    draw = torch.Generator().manual_seed(0)
    keys, values = cache.keys[0], cache.values[0]
    for pool in (keys, values):
        pool[1:] = torch.randn(pool[1:].shape, generator=draw).to(device, dtype)
    key, value = torch.randn(2, sum(counts), cache.num_kv_heads, cache.head_dim, generator=draw).to(device, dtype)
    query = torch.randn(sum(counts), config.num_attention_heads, cache.head_dim, generator=draw).to(device, dtype)
    output = make_plan(cache, segments).attend(0, query, key, value, cache.head_dim**-0.5)
    plain = []
    for rows, segment in zip(torch.split(query, counts), segments, strict=True):
        pages = [pool[segment.block_table] for pool in (keys, values)]
        visible = [(page if paged else page.transpose(1, 2)).flatten(0, 1)[: segment.length] for page in pages]
        q, k, v = (heads.float().transpose(0, 1) for heads in (rows, *visible))
        mask = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool, device=device).tril(k.shape[1] - q.shape[1])
        plain.append(scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True).transpose(0, 1).flatten(1))
    return float((output.float() - torch.cat(plain)).abs().max())


def pad_tables(lengths: list[int], tables: list[list[int]], block_size: int, longest: int = 0) -> NDArray[np.int64]:
    """(B, blocks of the longest): the blocks of each table that hold its first `length` rows, then zeros.

    Args:
        longest: rows that the result has room for at least.
    """
    used = [-(-length // block_size) for length in lengths]
    padded = np.zeros((len(used), max(*used, -(-longest // block_size))), dtype=np.int64)
    for row, count, table in zip(padded, used, tables, strict=True):
        row[:count] = table[:count]
    return padded


def row_slots(segments: list[Segment], block_size: int) -> NDArray[np.int64]:
    """(T,): block * block_size + offset of each row of the forward."""
    slots = []
    for segment in segments:
        positions = np.arange(segment.length - segment.num_rows, segment.length)
        table = np.asarray(segment.block_table, dtype=np.int64)
        slots.append(table[positions // block_size] * block_size + positions % block_size)
    return np.concatenate(slots)
