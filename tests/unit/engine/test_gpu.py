"""The CUDA path on a GPU. test_attention.py covers everything but the kernel call on a CPU."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from gircse_rag.backend import Refinement, Request
from gircse_rag.backends.paged import PagedBackend
from gircse_rag.backends.reference import ReferenceBackend
from gircse_rag.engine.attention import PagedPlan, Segment, has_paged_kernel
from gircse_rag.engine.gathered import GatheredPlan
from gircse_rag.engine.kv_cache import PAGED_BLOCK_SIZE, KVCache
from gircse_rag.spec import EmbeddingSpec
from gircse_rag.weights import DecoderWeights

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
SPEC = EmbeddingSpec(base_model="random", base_hash="0", tokenizer_hash="0", dimension=256)


def model(dtype: torch.dtype) -> PreTrainedModel:
    """A random Llama whose head width flash attention supports, scaled so that refinement is not chaotic."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2000,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        tie_word_embeddings=True,
        max_position_embeddings=2048,
    )
    llama = LlamaForCausalLM(config).eval().requires_grad_(False)
    for name, weight in llama.named_parameters():
        if "norm" not in name:
            weight.normal_(std=0.3 if "embed" in name else 0.5 * weight.shape[-1] ** -0.5)
    return llama.to("cuda", dtype)


def requests() -> list[Request]:
    rng = random.Random(0)
    start = tuple(rng.randrange(2000) for _ in range(300))  # longer than a page, so that a prefix is shared
    lengths = [1, 2, 17, 100, 255, 256, 257, 700]
    bodies = [tuple(rng.randrange(2000) for _ in range(n)) for n in lengths]
    return [Request(start + body if i % 2 else body, rng.randint(1, 5)) for i, body in enumerate(bodies * 3)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_equals_the_float32_reference(dtype: torch.dtype) -> None:
    batch = requests()
    expected = dict(ReferenceBackend(model(torch.float32)).refine(batch))
    backend = PagedBackend(model(dtype), SPEC, token_budget=512, max_running=16)
    for _ in range(2):
        found = dict(backend.refine(batch))
        for index, reference in expected.items():
            outcome = found[index]
            assert isinstance(outcome, Refinement), outcome
            assert isinstance(reference, Refinement)
            if dtype == torch.float32:
                assert np.abs(outcome.trajectory - reference.trajectory).max() <= 1e-3
            assert outcome.vector @ reference.vector > (0.99999 if dtype == torch.float32 else 0.99)
    assert backend._blocks.num_hits > 0
    backend._engine.scheduler.check_integrity()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_kernel_equals_the_gathered_plan(dtype: torch.dtype) -> None:
    device = torch.device("cuda")
    config = DecoderWeights.of(model(dtype)).config
    if not has_paged_kernel(config, device, dtype):
        pytest.skip("this torch or GPU has no paged varlen_attn")
    shapes = [(1, 1), (1, 300), (40, 40), (100, 400), (256, 256), (1, 257), (300, 800)]
    num_blocks = 1 + sum(-(-length // PAGED_BLOCK_SIZE) for _, length in shapes)
    free = iter(range(1, num_blocks))
    segments = [Segment(n, m, [next(free) for _ in range(-(-m // PAGED_BLOCK_SIZE))]) for n, m in shapes]
    paged = KVCache(config, num_blocks, paged=True, block_size=PAGED_BLOCK_SIZE, dtype=dtype, device=device)
    gathered = KVCache(config, num_blocks, paged=False, block_size=PAGED_BLOCK_SIZE, dtype=dtype, device=device)
    for target, source in zip((*gathered.keys, *gathered.values), (*paged.keys, *paged.values), strict=True):
        source[1:].normal_()
        target.copy_(source.transpose(1, 2))
    total = sum(n for n, _ in shapes)
    query = torch.randn(total, 4, 64, dtype=dtype, device=device)
    key, value = torch.randn(2, total, 2, 64, dtype=dtype, device=device)
    ours = PagedPlan(paged, segments).attend(0, query, key, value, 0.125)
    plain = GatheredPlan(gathered, segments, 4).attend(0, query, key, value, 0.125)
    assert (ours.float() - plain.float()).abs().max() < 0.03


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_a_nan_fails_its_text_alone(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    lookup = torch.nn.functional.embedding

    def poisoned(ids: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return lookup(ids, *args, **kwargs).masked_fill((ids == 1999)[..., None], float("nan"))

    monkeypatch.setattr(torch.nn.functional, "embedding", poisoned)
    batch = [Request(tuple(i % 1999 for i in r.token_ids), r.steps) for r in requests()]
    batch[5] = Request((*batch[5].token_ids, 1999, 3), 4)  # texts 13 and 21 share the prefix before the NaN
    found = dict(PagedBackend(model(dtype), SPEC, token_budget=512, max_running=16).refine(batch))
    assert [index for index, outcome in sorted(found.items()) if not isinstance(outcome, Refinement)] == [5]
