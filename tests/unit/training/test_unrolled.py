"""The unrolled decoder against full recomputation through the Hugging Face model: states and gradients."""

import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from gircse_rag.errors import InputError
from gircse_rag.training.losses import icr_loss
from gircse_rag.training.packing import group_by_length
from gircse_rag.training.soft_token_watch import SoftTokenWatch
from gircse_rag.training.unrolled import UnrolledRefinement, _clip_per_text

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SIZES = dict(
    vocab_size=97,
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
)
TEXTS = [
    [5, 9, 2],
    [7],
    [11, 3, 8, 1, 60, 22],
    [4, 4, 90],
    [33, 2, 1, 8, 7, 6, 5, 4, 3],
    [1, 2, 3, 4],
    [8, 8],
    [9, 1, 44],
]
HEAD = [12, 7, 7, 30, 2]  # like an instruction: it precedes queries but not documents
SOME_SHARE_HEAD = [
    [*HEAD, 5],
    [*HEAD, 9, 1, 3, 3],
    [8, 3],
    [4, 4, 90, 1, 2, 6],
    [*HEAD, 2, 2],
    [1, 2],
    [12, 7, 7],
    [*HEAD, 6],
]
BATCHES = {"none shared": TEXTS, "some shared": SOME_SHARE_HEAD, "all shared": [[*HEAD, *text] for text in TEXTS]}
FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "mistral": (MistralForCausalLM, MistralConfig(**SIZES, sliding_window=None)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SIZES, tie_word_embeddings=False)),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**SIZES, head_dim=16)),
}


def tiny(family: str, targets=PROJECTIONS):
    torch.manual_seed(0)
    kind, config = FAMILIES[family]
    model = kind(config)
    with torch.no_grad():  # new biases are 0 and new norms 1: a decoder that ignored them would pass
        for name, parameter in model.named_parameters():
            if "norm" in name or "bias" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return model.eval()


def recompute(model, texts, steps):
    """The paper's loop, (n, K, d): recompute the whole sequence at every step, one text at a time."""
    causal = model.get_base_model()
    embeddings, states = causal.get_input_embeddings().weight, []
    for text in texts:
        x, hs = embeddings[torch.tensor(text)][None], []
        for _ in range(steps + 1):
            h = causal.model(inputs_embeds=x, use_cache=False).last_hidden_state[:, -1]
            hs.append(h)
            soft = torch.softmax(causal.lm_head(h), dim=-1) @ embeddings
            x = torch.cat([x, soft[:, None]], dim=1)
        states.append(torch.cat(hs[1:]))
    return torch.stack(states)


def gradients(model, states):
    model.zero_grad()
    icr_loss(states[:2], states[2:]).total.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("batch", BATCHES)
def test_states_and_gradients_equal_full_recomputation(family, groups, batch):
    model, texts = tiny(family), BATCHES[batch]
    ours, theirs = UnrolledRefinement(model, groups=groups)(texts, 4), recompute(model, texts, 4)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    expected = gradients(model, theirs)
    found = gradients(model, UnrolledRefinement(model, groups=groups)(texts, 4))
    assert len(expected) == 3 * 7 * 2 and found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-4 * gradient.norm(), name


def test_per_text_clipping_only_limits_large_gradients():
    """The limit is twice the batch's geometric mean. States and balanced batches do not change."""
    torch.manual_seed(0)
    rows = torch.randn(6, 8, dtype=torch.float64)
    balanced = rows / rows.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(_clip_per_text(balanced), balanced)
    rows[2] *= 1e6
    found, norms = _clip_per_text(rows), rows.norm(dim=-1)
    limit = 2 * norms.log().mean().exp()
    torch.testing.assert_close(found.norm(dim=-1), norms.clamp(max=limit), rtol=1e-6, atol=0)
    torch.testing.assert_close(functional.normalize(found, dim=-1), functional.normalize(rows, dim=-1))
    model = tiny("llama")
    plain, clipped = (UnrolledRefinement(model, clip_text_gradients=flag) for flag in (False, True))
    torch.testing.assert_close(clipped(TEXTS, 4), plain(TEXTS, 4))
    whole, cut = gradients(model, plain(TEXTS, 4)), gradients(model, clipped(TEXTS, 4))
    assert any((whole[name] - cut[name]).norm() > 1e-3 * whole[name].norm() for name in whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_without_the_base_weights_states_and_gradients_stay(family, dtype):
    kept, released = (UnrolledRefinement(tiny(family), dtype=dtype) for _ in range(2))
    released.release_base()
    states, again = kept(TEXTS, 3), released(TEXTS, 3)
    assert torch.equal(states, again)
    for refined in (states, again):
        refined.float().square().sum().backward()
    for (name, parameter), other in zip(kept.model.named_parameters(), released.model.parameters(), strict=True):
        assert parameter.requires_grad == ("lora_" in name)
        if parameter.requires_grad:
            assert torch.equal(parameter.grad, other.grad)
        else:
            assert other.numel() == 0


def test_an_adapter_on_some_projections_only():
    model = tiny("llama", ["q_proj", "v_proj", "down_proj"])
    expected = gradients(model, recompute(model, TEXTS, 2))
    found = gradients(model, UnrolledRefinement(model)(TEXTS, 2))
    assert found.keys() == expected.keys() and len(found) == 3 * 3 * 2
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-4 * gradient.norm(), name


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_baselines_pool_the_prefill(pooling, batch):
    model, texts = tiny("qwen2"), BATCHES[batch]
    found = UnrolledRefinement(model)(texts, 1, pooling)
    for row, text in zip(found, texts, strict=True):
        states = model.get_base_model().model(input_ids=torch.tensor([text])).last_hidden_state[0]
        torch.testing.assert_close(row[0], states[-1] if pooling == "last" else states.mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("batch", "rows"), [("none shared", 31), ("some shared", 26), ("all shared", 36)])
def test_a_shared_prefix_is_computed_once(batch, rows):
    """Some shared: 13 rows of texts without HEAD, 8 after HEAD, 5 of HEAD. All shared: 31 after HEAD, 5 of HEAD."""
    packed = UnrolledRefinement(tiny("llama")).pack(BATCHES[batch])
    assert len(packed.ids) == rows and packed.prefix == (0 if batch == "none shared" else 5)
    assert packed.lengths[packed.inverse].tolist() == [len(text) for text in BATCHES[batch]]


def test_soft_token_watch_records_entropy_and_weights():
    module, watch = UnrolledRefinement(tiny("llama")), SoftTokenWatch()
    module.on_soft_token = watch
    module(TEXTS, 3)
    record = watch.record()
    assert watch.rows == 3 * len(TEXTS) and SoftTokenWatch().record() == {}
    assert 0 < record["entropy"] <= math.log(97) and 1 / 97 <= record["commonest"] <= record["heaviest"] <= 1
    collapsed = SoftTokenWatch()
    collapsed(torch.eye(97)[[5, 5, 5, 6]])
    found = collapsed.record()
    assert found == {"entropy": 0.0, "heaviest": 1.0, "commonest": 0.75, "commonest_id": 5}
    flat = SoftTokenWatch()
    flat(torch.full((40, 97), 1 / 97))
    assert flat.record()["entropy"] == pytest.approx(math.log(97))


def test_bad_input_is_refused():
    unrolled = UnrolledRefinement(tiny("llama"))
    with pytest.raises(InputError, match="at least one refinement step"):
        unrolled(TEXTS, 0)
    with pytest.raises(InputError, match="without tokens") as caught:
        unrolled([[1], []], 1)
    assert caught.value.index == 1


def test_dropout_and_merged_adapters_are_refused():
    model = LlamaForCausalLM(FAMILIES["llama"][1])
    dropping = get_peft_model(
        model, LoraConfig(r=2, lora_dropout=0.1, target_modules=["q_proj"], task_type="CAUSAL_LM")
    )
    with pytest.raises(InputError, match="dropout must be 0"):
        UnrolledRefinement(dropping)
    merged = tiny("llama")
    merged.merge_adapter()
    with pytest.raises(InputError, match="unmerged"):
        UnrolledRefinement(merged)


def test_a_sliding_window_shorter_than_the_text_is_refused():
    model = MistralForCausalLM(MistralConfig(**SIZES, sliding_window=8))
    with pytest.raises(InputError, match="sliding window"):
        UnrolledRefinement(model)([[1] * 7], 2)


def test_length_groups_minimise_padding():
    import itertools

    import numpy as np

    generator = np.random.default_rng(0)
    for _ in range(20):
        lengths = np.sort(generator.integers(1, 12, size=9))
        found = group_by_length(lengths, 3)
        assert found[0][0] == 0 and found[-1][1] == 9 and all(a[1] == b[0] for a, b in itertools.pairwise(found))
        least = min(
            sum((b - a) * lengths[b - 1] for a, b in itertools.pairwise((0, *inner, 9)))
            for inner in itertools.chain(
                [()], itertools.combinations(range(1, 9), 1), itertools.combinations(range(1, 9), 2)
            )
        )
        assert sum((b - a) * lengths[b - 1] for a, b in found) == least
