"""The engine's forward against transformers' own modules, and the number of torch calls that it takes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from gircse_rag.engine.attention import Segment
from gircse_rag.engine.decoder import Decoder
from gircse_rag.engine.gathered import GatheredPlan
from gircse_rag.engine.kv_cache import KVCache
from gircse_rag.engine.products import Form, packed_form
from gircse_rag.hardware import has_float16_products
from gircse_rag.weights import DecoderWeights
from tests import tiny

YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}

needs_float16_products = pytest.mark.skipif(not has_float16_products(), reason="this CPU has no FBGEMM")


def biased_llama() -> PreTrainedModel:
    """A llama with biases in every projection and yarn's rotary frequencies and scaling."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=400,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=256,
        attention_bias=True,
        mlp_bias=True,
        rope_parameters=YARN,
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    for name, weight in model.named_parameters():
        weight.normal_(mean=float("norm" in name), std=0.3)
    return model


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    **{family: functools.partial(tiny.model, family) for family in tiny.FAMILIES},
    "biased": biased_llama,
}
FORMS = [
    (torch.float32, Form.PLAIN),
    (torch.float32, Form.ONEDNN),
    (torch.bfloat16, Form.PLAIN),
    pytest.param(torch.float16, Form.FBGEMM, marks=needs_float16_products),
]


class Calls(TorchDispatchMode):
    """Counts the torch operations that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def run(decoder: Decoder, weights: DecoderWeights, ids: torch.Tensor, chunks: list[int]) -> tuple[torch.Tensor, int]:
    """Hidden states (T, d) of one sequence, computed in chunks of rows, and the torch calls of the last chunk."""
    cache = KVCache(
        weights.config,
        1 + len(ids),
        paged=False,
        block_size=2,
        dtype=decoder.dtype,
        device=torch.device("cpu"),
    )
    inputs = torch.nn.functional.embedding(ids, weights.embeddings).to(decoder.dtype)
    table = list(range(1, 1 + -(-len(ids) // 2)))
    parts, start = [], 0
    with torch.inference_mode():
        for count in chunks:
            end = start + count
            plan = GatheredPlan(cache, [Segment(count, end, table)], weights.config.num_attention_heads)
            with Calls() as calls:
                parts.append(decoder(inputs[start:end], torch.arange(start, end), plan))
            start = end
    return torch.cat(parts), calls.count


@pytest.mark.parametrize(("dtype", "form"), FORMS)
@pytest.mark.parametrize("name", MODELS)
def test_hidden_states_equal_those_of_transformers(name: str, dtype: torch.dtype, form: Form) -> None:
    model = MODELS[name]().to(dtype)
    weights = DecoderWeights.of(model)
    ids = torch.randint(400, (100,), generator=torch.Generator().manual_seed(1))
    exact = MODELS[name]().to(dtype).float()  # the rounded weights, in float32
    with torch.inference_mode():
        expected = exact.model(input_ids=ids[None]).last_hidden_state[0]
        rounding = (model.model(input_ids=ids[None]).last_hidden_state[0].float() - expected).abs().max()
    found, _ = run(Decoder(weights, form), weights, ids, [60, 1, 38, 1])
    assert found.dtype == (torch.bfloat16 if dtype == torch.bfloat16 else torch.float32)
    tolerance = 2 * rounding if dtype == torch.bfloat16 else 2e-5 * float(expected.abs().max())
    assert (found.float() - expected).abs().max() <= tolerance


@pytest.mark.parametrize(("rows", "limit"), [(1, 36), (6, 42)])
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.float16, marks=needs_float16_products)])
def test_a_layer_takes_few_torch_calls(dtype: torch.dtype, rows: int, limit: int) -> None:
    """With one row, torch calls cost as much as the products; transformers' layers take over 100."""
    weights = DecoderWeights.of(tiny.model().to(dtype))
    decoder = Decoder(weights, packed_form(weights.embeddings))
    _, two_layers = run(decoder, weights, torch.arange(20), [20 - rows, rows])
    del decoder.layers[1]
    _, one_layer = run(decoder, weights, torch.arange(20), [20 - rows, rows])
    assert two_layers - one_layer < limit


@needs_float16_products
def test_float16_products_are_not_used_where_the_probe_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(8, 8).half()
    assert packed_form(weight) is Form.FBGEMM
    monkeypatch.setattr("gircse_rag.engine.products.has_float16_products", lambda: False)
    assert packed_form(weight) is Form.PLAIN
