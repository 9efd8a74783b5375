"""A base model's config.json: read it, and refuse models that would be computed wrongly or do not fit their weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from gircse_rag.checkpoint.bundled import base_folder
from gircse_rag.checkpoint.spec_file import read_json
from gircse_rag.errors import CheckpointError
from gircse_rag.spec import FAMILIES

MAX_WEIGHTS_PER_BYTE = 2
"""Quantised weights take at least 4 bits each."""
MAX_POSITIONS = 2**24
"""Rotary positions are float32 numbers, which are exact up to here."""

_GEMMA = (
    "most of its layers have a sliding window and rotary frequencies of their own, it has four norms per layer, and it "
    "multiplies the embeddings of tokens by sqrt(d), so what a soft token is depends on how a checkpoint was trained"
)
_EXPERTS = "a router sends each row through a few experts, which neither the engine nor training computes"
_REFUSED = {
    "gemma3": _GEMMA,
    "gemma3_text": _GEMMA,
    "qwen3_moe": _EXPERTS,
    "mixtral": _EXPERTS,
    "phi3": "Phi-3 and Phi-4 store q, k and v, and gate and up, as one weight, and some rotate a part of each head",
}
"""Why a well-known family is not supported."""

# Rotary frequencies that transformers chooses by the longest text of a forward.
_LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")
# Settings of other families. transformers reads them for every model, the engine and training do not.
_FOREIGN_SETTINGS: dict[str, Any] = {
    "is_causal": True,
    "attention_chunk_size": None,
    "num_kv_shared_layers": 0,
    "per_layer_config": {},
}


def read_model_config(folder: Path) -> PretrainedConfig:
    """Read and check config.json. Allocates nothing in proportion to the sizes it names.

    Raises:
        CheckpointError: config.json is damaged; the family is not supported; the weights are missing, or too small for
            this config; a vector would depend on the other texts of its batch; a setting is not supported.
        Exception: transformers refuses a value.
    """
    path = folder / "config.json"
    try:
        values = read_json(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}{advice(folder)}") from error
    _check_family(folder, values.get("model_type"))
    _check_sizes(folder, values)
    for name, neutral in _FOREIGN_SETTINGS.items():
        value = values.get(name, neutral)
        if bool(value) != bool(neutral):
            raise CheckpointError(
                f"{path} sets {name}={value!r}, which transformers would respect, but the engine and training would "
                "ignore; choose another base model"
            )
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    _check_family(folder, config.model_type)  # transformers renames a mistral that has layer_types
    rope = (config.rope_parameters or {}).get("rope_type")
    if rope in _LENGTH_DEPENDENT_ROPE:
        raise CheckpointError(
            f"{path} sets the rope type {rope!r}: its frequencies depend on the longest text of a batch, so a text's "
            "vector would depend on its neighbours; use a model with fixed frequencies (default, linear, llama3, yarn)"
        )
    assert isinstance(config, PretrainedConfig)
    return config


def _check_family(folder: Path, family: object) -> None:
    if family not in FAMILIES:
        reason = f" ({_REFUSED[family]})" if isinstance(family, str) and family in _REFUSED else ""
        raise CheckpointError(f"{folder} is a {family} model; supported families: {', '.join(FAMILIES)}{reason}")


def _check_sizes(folder: Path, values: dict[str, Any]) -> None:
    """Refuse a config that describes a larger model than the weights of `folder`."""

    def size(name: str) -> int:
        value = values.get(name)
        return max(1, value) if isinstance(value, int) else 1  # other types: transformers refuses them

    stored = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    if not stored:
        raise CheckpointError(f"{folder} has no *.safetensors file{advice(folder)} (only safetensors are read)")
    attention = 2 * size("head_dim") * (size("num_attention_heads") + size("num_key_value_heads"))
    layers = size("num_hidden_layers") * (3 * size("intermediate_size") + attention)
    if size("hidden_size") * (size("vocab_size") + layers) > MAX_WEIGHTS_PER_BYTE * stored:
        raise CheckpointError(
            f"{folder / 'config.json'} describes a larger model than its weights ({stored} bytes): a file is damaged "
            f"or belongs to another model{advice(folder)}"
        )
    if size("max_position_embeddings") > MAX_POSITIONS:
        raise CheckpointError(
            f"{folder / 'config.json'} sets max_position_embeddings above {MAX_POSITIONS}, the largest position that "
            "can be computed; set it to the length that the model was trained for"
        )


def advice(folder: Path) -> str:
    """What to do about damaged files of a model, as the end of an error message."""
    if folder == base_folder():
        return f"; delete {folder}, and it will be fetched again"
    return "; download the files again, or save the model again"
