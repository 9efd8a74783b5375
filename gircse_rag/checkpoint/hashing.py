"""What fixes a vector space, as sha256: the weights of a model, of an adapter, and a tokenizer."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

# What of a configuration changes the arithmetic, whatever version of transformers wrote it.
_ARITHMETIC = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "hidden_act",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "attention_bias",
    "mlp_bias",
    "sliding_window",
    "rms_norm_eps",
    "rope_parameters",
    "tie_word_embeddings",
)


def hash_model(model: PreTrainedModel) -> str:
    """Over tensors by name, so that a model in other shards, or with another file header, is still the same model."""
    digest = hashlib.sha256()
    config = model.config.to_dict()
    digest.update(json.dumps({key: config.get(key) for key in _ARITHMETIC}, sort_keys=True, default=str).encode())
    weights = sorted(model.named_parameters())
    with ThreadPoolExecutor() as pool:  # hashlib lets other threads run
        for part in pool.map(lambda item: _digest(*item), weights):
            digest.update(part)
    return digest.hexdigest()


def hash_lora(config: dict[str, Any], weights: dict[str, torch.Tensor]) -> str:
    """Over an adapter's weights, and what of its adapter_config.json scales them."""
    digest = hashlib.sha256()
    keys = ("r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "fan_in_fan_out")
    digest.update(json.dumps({key: config.get(key) for key in keys}, sort_keys=True).encode())
    for name, weight in sorted(weights.items()):
        digest.update(_digest(name, weight))
    return digest.hexdigest()


def _digest(name: str, weight: torch.Tensor) -> bytes:
    digest = hashlib.sha256(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
    digest.update(weight.detach().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.digest()


def hash_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Over what decides the ids; not over padding, truncation or decoding, which we do not use."""
    definition = json.loads(tokenizer.backend_tokenizer.to_str())
    parts = {key: definition.get(key) for key in ("model", "normalizer", "pre_tokenizer", "added_tokens")}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
