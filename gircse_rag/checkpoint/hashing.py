"""sha256 hashes of everything that determines a vector space: model weights, adapter and tokenizer."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Config keys that change the arithmetic. All others may differ between versions of transformers. A fingerprint must not
# change with this package's version, so `_hash_inputs` adds further keys only where they differ from their usual value.
_ARITHMETIC = (
    *("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "hidden_act"),
    *("num_attention_heads", "num_key_value_heads", "head_dim", "attention_bias", "mlp_bias", "sliding_window"),
    *("rms_norm_eps", "rope_parameters", "tie_word_embeddings"),
)

# Kind of all layers where config.json has no layer_types. A llama's attention has no window, but its cache has.
_USUAL_LAYER = {"llama": "sliding_attention", "qwen2": "full_attention", "qwen3": "full_attention"}


def hash_model(model: PreTrainedModel) -> str:
    """Hash a model's tensors by name, and the config keys that change the arithmetic. Sharding does not matter."""
    digest = hashlib.sha256()
    digest.update(json.dumps(_hash_inputs(model.config.to_dict()), sort_keys=True, default=str).encode())
    weights = sorted(model.named_parameters())
    with ThreadPoolExecutor() as pool:  # hashlib releases the GIL
        for part in pool.map(lambda item: _digest(*item), weights):
            digest.update(part)
    return digest.hexdigest()


def _hash_inputs(config: dict[str, Any]) -> dict[str, Any]:
    """The entries of a config that change the arithmetic of the supported families."""
    hashed = {key: config.get(key) for key in _ARITHMETIC}
    kinds = config.get("layer_types")
    # Which layers have the sliding window.
    if kinds and config.get("sliding_window") and set(kinds) != {_USUAL_LAYER.get(config["model_type"])}:
        hashed["layer_types"] = kinds
    rope = config.get("rope_parameters") or {}
    if rope.get("rope_type") == "yarn" and rope.get("factor") is None:  # then the window determines the factor
        hashed["max_position_embeddings"] = config.get("max_position_embeddings")
    return hashed


def hash_lora(config: dict[str, Any], weights: dict[str, torch.Tensor]) -> str:
    """Hash an adapter's weights, and the keys of its adapter_config.json that scale them."""
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
    """Hash the parts of a tokenizer that determine token ids: not padding, truncation or decoding."""
    definition = json.loads(tokenizer.backend_tokenizer.to_str())
    parts = {key: definition.get(key) for key in ("model", "normalizer", "pre_tokenizer", "added_tokens")}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
