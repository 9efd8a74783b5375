"""Fixed shapes: a row has the same bits at any place, beside any rows, however the prompt was cut."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gircse_rag.engine.attention import Segment
from gircse_rag.engine.fixed import FixedPlan
from gircse_rag.engine.kv_cache import KVCache
from gircse_rag.engine.products import ROW_BLOCK, Form, make_product, packed_form
from gircse_rag.weights import DecoderWeights
from tests import tiny
from tests.unit.engine.test_decoder import needs_float16_products

CONFIG = DecoderWeights.of(tiny.model()).config
needs_bfloat16_products = pytest.mark.skipif(
    packed_form(torch.empty(0, dtype=torch.bfloat16)) is not Form.ONEDNN, reason="oneDNN has no bfloat16 on this CPU"
)
FORMS = [
    (Form.PLAIN, torch.float32),
    (Form.PLAIN, torch.bfloat16),
    (Form.ONEDNN, torch.float32),
    pytest.param(Form.ONEDNN, torch.bfloat16, marks=needs_bfloat16_products),
    pytest.param(Form.FBGEMM, torch.float16, marks=needs_float16_products),
]


@pytest.mark.parametrize(("form", "dtype"), FORMS)
@pytest.mark.parametrize("shape", [(960, 576), (101, 77)])
def test_a_products_row_does_not_depend_on_the_others(form: Form, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    draw = torch.Generator().manual_seed(0)
    product = make_product(torch.randn(shape, generator=draw).to(dtype), None, form, fixed_rows=True)
    rows = torch.float32 if dtype == torch.float16 else dtype
    row = torch.randn(shape[1], generator=draw).to(rows)

    def placed(place: int, number: int) -> Tensor:
        x = (100 * torch.randn(number, shape[1], generator=draw)).to(rows)
        x[place] = row
        out = product(x)
        assert len(out) == number
        return out[place]

    first = placed(0, ROW_BLOCK)
    for place, number in [(5, ROW_BLOCK), (ROW_BLOCK - 1, ROW_BLOCK), (20, 2 * ROW_BLOCK), (77, 8 * ROW_BLOCK)]:
        assert torch.equal(placed(place, number), first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_does_not_depend_on_chunks_and_neighbours(dtype: torch.dtype) -> None:
    """A prompt of 150 rows and two soft rows: in one forward, in chunks, and beside other sequences."""
    draw = torch.Generator().manual_seed(0)
    length, tokens = 152, 150
    query, key, value = (torch.randn(length, heads, 8, generator=draw).to(dtype) for heads in (4, 2, 2))
    other = [torch.randn(90, heads, 8, generator=draw).to(dtype) for heads in (4, 2, 2)]

    def attend(cuts: list[int], crowded: bool) -> Tensor:
        cache = KVCache(CONFIG, 200, paged=False, block_size=2, dtype=dtype, device=torch.device("cpu"))
        outputs = []
        for start, end in zip([0, *cuts], [*cuts, length], strict=True):
            segments = [Segment(end - start, end, list(range(1, 80)), tokens)]
            rows = [part[start:end] for part in (query, key, value)]
            if crowded:
                segments.insert(0, Segment(90, 90, list(range(80, 130)), 88))
                rows = [torch.cat(pair) for pair in zip(other, rows, strict=True)]
            padding = -len(rows[0]) % ROW_BLOCK
            q, k, v = (torch.cat((part, part.new_ones(padding, *part.shape[1:]))) for part in rows)
            found = FixedPlan(cache, segments, 4).attend(0, q, k, v, 0.3)
            assert not found[len(found) - padding :].any()
            outputs.append(found[len(found) - padding - (end - start) : len(found) - padding])
        return torch.cat(outputs)

    whole = attend([], crowded=False)
    assert torch.equal(attend([], crowded=True), whole)
    assert torch.equal(attend([1, 37, 100, 151], crowded=False), whole)
    assert torch.equal(attend([63, 64, 65, 150], crowded=True), whole)
