"""Paged and gathered attention against dense float64 attention, one sequence at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gircse_rag.engine import attention, gathered
from gircse_rag.engine.attention import PagedPlan, Plan, Segment
from gircse_rag.engine.fixed import FixedPlan
from gircse_rag.engine.gathered import GatheredPlan
from gircse_rag.engine.kv_cache import KVCache
from gircse_rag.errors import GircseWarning
from gircse_rag.weights import DecoderWeights
from tests import tiny

HEADS, KV_HEADS, WIDTH = 4, 2, 8
CONFIG = DecoderWeights.of(tiny.model()).config
SCALING = 0.3

MIXES = {
    "one prompt": [(7, 7)],
    "one soft row": [(1, 12)],
    "prompts of all lengths": [(n, n) for n in (1, 2, 3, 9, 17, 40, 130)],
    "prefill beside refinement": [(30, 30), (1, 9), (1, 33), (1, 70), (12, 28), (64, 200), (5, 20)],
    "many soft rows": [(1, 5 + 3 * i) for i in range(40)],
}


def reference(query: Tensor, keys: Tensor, values: Tensor, length: int, scaling: float = SCALING) -> Tensor:
    """softmax(scaling q k^T) v for the last rows of one sequence: (n, H, D), (length, H_kv, D) x2 -> (n, H * D)."""
    repeats = HEADS // KV_HEADS
    k, v = (x.double().repeat_interleave(repeats, dim=1) for x in (keys, values))
    scores = scaling * torch.einsum("qhd,khd->hqk", query.double(), k)
    positions = torch.arange(length - len(query), length)
    scores = scores.masked_fill(torch.arange(length) > positions[:, None], float("-inf"))
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).reshape(len(query), -1)


def kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    **options: Any,
) -> Tensor:
    """Plain stand-in for torch's varlen_attn with a block table; also checks the arguments."""
    table, used = options["block_table"], options["seqused_k"]
    assert query.is_contiguous() and key.shape == value.shape and cu_seq_k is None
    assert {x.dtype for x in (cu_seq_q, table, used)} == {torch.int32}
    assert table.shape == (len(used), -(-max_k // key.shape[1])) and len(cu_seq_q) == len(used) + 1
    assert (options["window_size"], options["enable_gqa"], options["num_splits"]) == ((-1, 0), True, 1)
    assert max_k == used.max() and max_q == cu_seq_q.diff().max() and cu_seq_q[-1] == len(query)
    out = []
    for number, length in enumerate(used.tolist()):
        pages = table[number].long()
        k, v = (pool[pages].flatten(0, 1)[:length] for pool in (key, value))
        rows = query[cu_seq_q[number] : cu_seq_q[number + 1]]
        out.append(reference(rows, k, v, length, options["scale"]).view(-1, HEADS, WIDTH))
    return torch.cat(out).to(query.dtype)


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("layout", ["gathered", "paged", "fixed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_dense_attention(mix: str, layout: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(7)
    monkeypatch.setattr(attention, "varlen_attn", kernel)
    block_size = 16 if layout == "paged" else 4
    num_blocks = 1 + sum(-(-length // block_size) for _, length in MIXES[mix])
    cache = KVCache(
        CONFIG, num_blocks, paged=layout == "paged", block_size=block_size, dtype=dtype, device=torch.device("cpu")
    )
    free = iter((1 + torch.randperm(num_blocks - 1, generator=generator)).tolist())
    tables = [[next(free) for _ in range(-(-length // block_size))] for _, length in MIXES[mix]]
    history = [torch.randn(2, length, KV_HEADS, WIDTH, generator=generator).to(dtype) for _, length in MIXES[mix]]

    def plan(segments: list[Segment]) -> Plan:
        if layout == "fixed":
            return FixedPlan(cache, segments, HEADS)
        return PagedPlan(cache, segments) if cache.paged else GatheredPlan(cache, segments, HEADS)

    # Write the older rows first, as an earlier forward would have done.
    older = [(i, length - n) for i, (n, length) in enumerate(MIXES[mix]) if length > n]
    if older:
        k, v = (torch.cat([history[i][which, :before] for i, before in older]) for which in (0, 1))
        queries = torch.zeros(len(k), HEADS, WIDTH, dtype=dtype)
        plan([Segment(before, before, tables[i]) for i, before in older]).attend(1, queries, k, v, SCALING)

    query = torch.randn(sum(n for n, _ in MIXES[mix]), HEADS, WIDTH, generator=generator).to(dtype)
    k, v = (
        torch.cat([h[which, length - n :] for h, (n, length) in zip(history, MIXES[mix], strict=True)])
        for which in (0, 1)
    )
    segments = [
        Segment(n, length, table, num_tokens=length if n > 1 else length - 1)
        for (n, length), table in zip(MIXES[mix], tables, strict=True)
    ]
    found = plan(segments).attend(1, query, k, v, SCALING)

    rows = query.split([n for n, _ in MIXES[mix]])
    expected = torch.cat([reference(q, h[0], h[1], h.shape[1]) for q, h in zip(rows, history, strict=True)])
    assert found.dtype == dtype
    assert (found.double() - expected).abs().max() <= (1e-5 if dtype == torch.float32 else 3e-2)
    assert all(not pool[0].any() for pool in (*cache.keys, *cache.values)), "the zero block was written to"


def test_pieces_and_groups_cover_every_row_once() -> None:
    segments = [Segment(n, length, list(range(1, 200))) for mix in MIXES.values() for n, length in mix]
    pieces = gathered._split_segments(segments)
    groups = gathered._group_pieces(pieces, HEADS)
    grouped = [piece for group in groups for piece in group]
    rows = sorted(row for piece in grouped for row in range(piece.row, piece.row + piece.num_rows))
    assert rows == list(range(sum(segment.num_rows for segment in segments)))
    assert len(groups) < len(pieces) / 3


@pytest.mark.parametrize("layout", ["gathered", "paged"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_values_are_stored_as_finite_and_marked_in_the_key(layout: str, bad: float) -> None:
    cache = KVCache(CONFIG, 2, paged=layout == "paged", block_size=4, dtype=torch.bfloat16, device=torch.device("cpu"))
    key, value = torch.randn(2, 4, KV_HEADS, WIDTH).bfloat16()
    value[2, 1, 3] = bad
    segment = Segment(4, 4, [1])
    plan = PagedPlan(cache, [segment]) if cache.paged else GatheredPlan(cache, [segment], HEADS)
    cache.write(0, key, value, plan._slots)
    keys, values = (pool[1] if cache.paged else pool[1].transpose(0, 1) for pool in (cache.keys[0], cache.values[0]))
    assert values.isfinite().all()
    assert keys.isnan().nonzero().tolist() == [[2, 1, 3]]
    assert torch.equal(keys[:2], key[:2]) and torch.equal(values[3], value[3])


@pytest.mark.parametrize("where", ["key", "value"])
def test_a_nan_reaches_the_rows_that_see_it_and_no_others(where: str) -> None:
    """Two sequences in one forward; in the second, row 5 of 9 is NaN. A stale block of NaN keys follows each."""
    cache = KVCache(CONFIG, 9, paged=False, block_size=4, dtype=torch.float32, device=torch.device("cpu"))
    cache.keys[0][1:] = float("nan")
    query, key, value = (torch.randn(18, heads, WIDTH) for heads in (HEADS, KV_HEADS, KV_HEADS))
    (key if where == "key" else value)[9 + 5, 1] = float("nan")
    segments = [Segment(9, 9, [1, 2, 3, 7]), Segment(9, 9, [4, 5, 6, 8])]
    found = GatheredPlan(cache, segments, HEADS).attend(0, query, key, value, SCALING)
    assert [row for row in range(18) if not found[row].isfinite().all()] == [14, 15, 16, 17]


def test_no_paged_kernel_on_a_cpu() -> None:
    assert not attention.has_paged_kernel(CONFIG, torch.device("cpu"), torch.bfloat16)


Call = tuple[tuple[Any, ...], dict[str, Any]]


def _unchanged(arguments: tuple[Any, ...], options: dict[str, Any]) -> Call:
    return arguments, options


def _drop_last_key(arguments: tuple[Any, ...], options: dict[str, Any]) -> Call:
    return (*arguments[:6], arguments[6] - 1), {**options, "seqused_k": options["seqused_k"] - 1}


def _reverse_blocks(arguments: tuple[Any, ...], options: dict[str, Any]) -> Call:
    return arguments, {**options, "block_table": options["block_table"].flip(1)}


def _increase_scale(arguments: tuple[Any, ...], options: dict[str, Any]) -> Call:
    return arguments, {**options, "scale": 1.1 * options["scale"]}


@pytest.mark.parametrize("change", [_unchanged, _drop_last_key, _reverse_blocks, _increase_scale])
def test_kernel_difference_detects_a_wrong_kernel(
    change: Callable[[tuple[Any, ...], dict[str, Any]], Call], monkeypatch: pytest.MonkeyPatch
) -> None:
    def faulty(*arguments: Any, **options: Any) -> Tensor:
        arguments, options = change(arguments, options)
        return kernel(*arguments, **options)

    monkeypatch.setattr(attention, "varlen_attn", faulty)
    difference = attention.kernel_difference(CONFIG, torch.device("cpu"), torch.bfloat16)
    assert (difference < attention.KERNEL_TOLERANCE) == (change is _unchanged)


@pytest.mark.parametrize("difference", [0.001, 0.1, float("nan")])
def test_a_wrong_kernel_is_not_used(difference: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "kernel_difference", lambda *_: difference)
    device = torch.device("cuda")
    if difference == 0.001:
        assert attention.has_paged_kernel(CONFIG, device, torch.bfloat16)
        return
    with pytest.warns(GircseWarning, match="gathers keys and values instead"):
        assert not attention.has_paged_kernel(CONFIG, device, torch.bfloat16)


def test_a_torch_without_the_kernel_falls_back_silently(monkeypatch: pytest.MonkeyPatch) -> None:
    def reject(*_: object, **__: object) -> Tensor:
        raise TypeError("varlen_attn() got an unexpected keyword argument 'block_table'")

    monkeypatch.setattr(attention, "kernel_difference", reject)
    assert not attention.has_paged_kernel(CONFIG, torch.device("cuda"), torch.bfloat16)
