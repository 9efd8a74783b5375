"""Tiny random models of every supported family, created without any download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
WINDOW = 1024

# Repeated so that `:"`, `:(`, `:->`, `::` and `:'s` become single tokens, as in real vocabularies.
_CORPUS = [
    "Instruct: find texts\nQuery:\"quoted\" Query:(note) Query:->x Query::: Query:'s it's the way of the world"
] * 50


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of 400 tokens that merges the template's colon with the next characters."""
    built = Tokenizer(models.BPE())
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    built.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=6,
        show_progress=False,
    )
    built.train_from_iterator(_CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=built, eos_token="<|end|>", pad_token="<|end|>")


def model(
    family: str = "llama", *, tied: bool = True, seed: int = 0, scale: float = 0.8, head_dim: int = 8
) -> PreTrainedModel:
    """A random causal LM in float32: 2 layers, d=32, V=400.

    `scale` is the standard deviation of the embeddings; at 0.8 the largest soft-token weight exceeds 0.3. As in trained
    models, the layers are damped and an untied head resembles the embeddings. With neither, the recursion is chaotic:
    float32 rounding alone grows to 1e-1 within 20 steps.
    """
    config_class, model_class = FAMILIES[family]
    heads = 32 // head_dim if family == "qwen2" else 4  # Qwen2 has no head_dim of its own
    config = config_class(
        vocab_size=400,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 2),
        head_dim=head_dim,
        max_position_embeddings=WINDOW,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    torch.manual_seed(seed)
    network = model_class(config).eval().requires_grad_(False)
    for name, weight in network.named_parameters():
        if "norm" in name:
            weight.copy_(1 + 0.2 * torch.randn_like(weight))
        elif "embed" in name or "lm_head" in name:
            weight.normal_(std=scale)
        else:
            weight.normal_(std=0.5 * weight.shape[-1] ** -0.5)
    if not tied:
        network.lm_head.weight.mul_(0.7).add_(network.model.embed_tokens.weight, alpha=0.7)
    return network


def folder(path: Path, family: str = "llama", **options: Any) -> Path:
    """Save `model(family, **options)` and its tokenizer as a Hugging Face folder."""
    model(family, **options).save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path


def adapter(path: Path, base: Path | str, *, family: str = "llama", seed: int = 1, **options: Any) -> Path:
    """Save a LoRA folder in the authors' layout (r=16, alpha=64, all projections), with random non-zero weights."""
    lora = LoraConfig(r=16, lora_alpha=64, target_modules=PROJECTIONS, task_type="CAUSAL_LM")
    adapted = get_peft_model(model(family, **options), lora)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.normal_(std=0.05)
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(path, save_embedding_layers=False)
    return path
