"""A name, a folder or a Hub id -> base model + adapter + tokenizer + spec.

    "smollm2-135m"                 a bundled name (bundled.py)
    "./my-model"                   a folder: a merged model, or a PEFT adapter whose base is found from its config
    "Roytsai27/GIRCSE-QWEN7B"      a Hub id of either kind

A folder may hold `gircse.json` with the spec fields its author chose (temperature, templates, suffix, max_length,
document_steps, default_instruction). Only safetensors are read, and the one pinned GGUF of bundled.py; never pickle,
never remote code.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from gircse_rag.bundled import BUNDLED, base_folder, ensure_base
from gircse_rag.errors import CheckpointError, InputError
from gircse_rag.spec import EmbeddingSpec

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
SPEC_FILE = "gircse.json"
SPEC_FILE_FIELDS = frozenset(
    {
        "temperature",
        "query_template",
        "document_template",
        "suffix",
        "max_length",
        "document_steps",
        "default_instruction",
    }
)
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


@dataclass(frozen=True)
class Checkpoint:
    """All that a backend and the Embedder need.

    Attributes:
        model: a plain transformers causal LM, adapter merged, in eval mode, on its device.
        tokenizer: its tokenizer (a fast one).
        spec: the vector space.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    spec: EmbeddingSpec


def load_hf(
    name: str, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Plain transformers objects, adapter merged, for those who bring their own loop.

    Raises:
        CheckpointError: as `load_checkpoint`.
    """
    checkpoint = load_checkpoint(name, dtype=dtype, device=device)
    return checkpoint.model, checkpoint.tokenizer


def load_checkpoint(name: str, *, dtype: torch.dtype, device: str | torch.device) -> Checkpoint:
    """Load base model, adapter, tokenizer and spec.

    Weights are merged in the dtype they are stored in and converted to `dtype` afterwards.

    Raises:
        CheckpointError: nothing of that name, a file missing, truncated or tampered with, a family that is not
            supported, an adapter that does not fit, NaN in the weights; says which file or layer.
    """
    folder = _find(name)
    adapter = folder if (folder / "adapter_config.json").exists() else None
    base_name = name if adapter is None else _base_of(adapter)
    base = folder if adapter is None else _find(base_name)

    model = _load_model(base)
    with ThreadPoolExecutor(1) as beside:  # hashing half a gigabyte takes as long as parsing the tokenizer
        hashing = beside.submit(_hash_model, model)
        tokenizer = _load_tokenizer(adapter, base)
        tokenizer_hash, base_hash = _hash_tokenizer(tokenizer), hashing.result()
    known = BUNDLED.get(base_name)
    if known and (base_hash, tokenizer_hash) != (known.base_hash, known.tokenizer_hash):
        raise CheckpointError(
            f"the cached base model in {base} is damaged or was changed (weights {base_hash[:12]}, tokenizer "
            f"{tokenizer_hash[:12]}; expected {known.base_hash[:12]}, {known.tokenizer_hash[:12]}); delete that "
            "folder, it will be fetched again"
        )
    if adapter is not None:
        model = _merge(model, adapter)
    _check_finite(model)
    vocabulary, dimension = model.get_input_embeddings().weight.shape
    if len(tokenizer) > vocabulary:
        raise CheckpointError(
            f"{name}: the tokenizer has {len(tokenizer)} tokens, the model embeds {vocabulary}; they do "
            "not belong together: get both from one place"
        )
    try:
        spec = EmbeddingSpec(
            base_model=base_name,
            base_hash=base_hash,
            tokenizer_hash=tokenizer_hash,
            adapter=None if adapter is None else name,
            adapter_hash=None if adapter is None else _hash_adapter(adapter),
            dimension=dimension,
            dtype=str(dtype).removeprefix("torch."),
            **_spec_file(folder),
        )
    except InputError as error:
        raise CheckpointError(f"{folder / SPEC_FILE}: {error}") from error
    window = model.config.max_position_embeddings
    if spec.max_length + spec.document_steps > window:
        raise CheckpointError(
            f"{name}: max_length {spec.max_length} plus {spec.document_steps} steps exceed the model's window of "
            f"{window} positions; set max_length in {folder / SPEC_FILE}"
        )
    return Checkpoint(model.to(device=device, dtype=dtype).eval().requires_grad_(False), tokenizer, spec)


def _find(name: str) -> Path:
    """The local folder of a bundled name, a folder or a Hub id."""
    if name in BUNDLED:
        return BUNDLED[name].adapter or ensure_base()
    folder = Path(name).expanduser()
    if folder.is_dir():
        if (folder / "config.json").exists() or (folder / "adapter_config.json").exists():
            return folder
        raise CheckpointError(
            f"{folder} holds neither config.json (a model) nor adapter_config.json (a PEFT adapter); it holds "
            f"{sorted(path.name for path in folder.iterdir())[:10]}"
        )
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise CheckpointError(
            f"no model {name!r}: no such folder, no Hub id (owner/name) and no bundled name ({', '.join(BUNDLED)})"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.jinja"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise CheckpointError(
            f"could not get {name!r} from the Hugging Face Hub: {str(error).splitlines()[0]}; check the name, the "
            "network and, for a gated model, your token"
        ) from error


def _base_of(adapter: Path) -> str:
    config = _read_json(adapter / "adapter_config.json")
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise CheckpointError(f"{adapter / 'adapter_config.json'} does not name its base_model_name_or_path")
    return base


def _load_model(folder: Path) -> PreTrainedModel:
    if (folder / "adapter_config.json").exists():  # transformers would apply it, and its weights would be in no hash
        raise CheckpointError(
            f"{folder} should be a base model but holds an adapter too; give each a folder of its own"
        )
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if config.model_type not in FAMILIES:
            raise CheckpointError(f"{folder} is a {config.model_type} model; supported families: {', '.join(FAMILIES)}")
        model, info = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype="auto",
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"could not load a model from {folder}: {str(error).strip().splitlines()[0]}"
            f"{_repair(folder)} (only safetensors are read)"
        ) from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} weights of a causal LM, first {missing[0]}{_repair(folder)}"
        )
    if unexpected := sorted(key for key in info["unexpected_keys"] if not key.endswith("rotary_emb.inv_freq")):
        raise CheckpointError(
            f"{folder} has {len(unexpected)} weights that a {config.model_type} has no place for, first "
            f"{unexpected[0]}: its config.json is of another model{_repair(folder)}"
        )
    assert isinstance(model, PreTrainedModel)
    return model


def _load_tokenizer(adapter: Path | None, base: Path) -> PreTrainedTokenizerBase:
    folder = adapter if adapter and (adapter / "tokenizer.json").exists() else base
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # the Rust tokenizer raises bare Exception for a damaged file
        raise CheckpointError(
            f"could not load the tokenizer in {folder}: {str(error).strip().splitlines()[0]}{_repair(folder)}"
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise CheckpointError(f"{folder} has no tokenizer.json; save the tokenizer as a fast one")
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    return tokenizer


def _merge(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Merge a LoRA adapter into the model; every weight of the adapter must land, and every slot must be filled."""
    from peft import LoraConfig, PeftConfig, get_peft_model, set_peft_model_state_dict

    weights_file = folder / "adapter_model.safetensors"
    if not weights_file.exists():
        raise CheckpointError(f"{folder} has no adapter_model.safetensors; only safetensors are read")
    try:
        weights = load_file(weights_file)
        config = PeftConfig.from_pretrained(str(folder))
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"the adapter in {folder} is damaged: {error}") from error
    if not isinstance(config, LoraConfig):
        raise CheckpointError(f"the adapter in {folder} is a {config.peft_type} adapter; only LoRA is supported")
    if outside := [key for key in weights if "lm_head" in key or "embed_tokens" in key]:
        raise CheckpointError(
            f"the adapter in {folder} changes {outside[0]}: soft tokens need the head and the embeddings of the base "
            "model; train it on the attention and MLP projections only"
        )
    config.inference_mode = True
    config.base_model_name_or_path = model.name_or_path  # the folder it came from; a rename would warn
    try:
        adapted = get_peft_model(model, config, low_cpu_mem_usage=True)  # no random initialisation first
        slots = {name for name, _ in adapted.named_parameters() if "lora_" in name}
        result = set_peft_model_state_dict(adapted, weights, low_cpu_mem_usage=True)
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        raise CheckpointError(f"the adapter in {folder} does not fit its base model: {error}") from error
    unfilled = sorted(slots.intersection(result.missing_keys))
    if result.unexpected_keys or unfilled or not weights:
        raise CheckpointError(
            f"the adapter in {folder} does not fit its base model: {len(result.unexpected_keys)} weights have no place "
            f"{sorted(result.unexpected_keys)[:2]}, {len(unfilled)} places got no weight {unfilled[:2]}; it was "
            "made for another model, or is incomplete"
        )
    merged = adapted.merge_and_unload()
    assert isinstance(merged, PreTrainedModel)
    return merged


def _check_finite(model: nn.Module) -> None:
    for name, weight in model.named_parameters():
        low, high = torch.aminmax(weight)
        if not (torch.isfinite(low) and torch.isfinite(high)):
            raise CheckpointError(
                f"the weights hold NaN or infinity in {name}; the file is damaged or training diverged"
            )


def _spec_file(folder: Path) -> dict[str, Any]:
    path = folder / SPEC_FILE
    if not path.exists():
        return {}
    fields = _read_json(path)
    if unknown := sorted(set(fields) - SPEC_FILE_FIELDS):
        raise CheckpointError(f"{path} has unknown fields {unknown}; known: {sorted(SPEC_FILE_FIELDS)}")
    return fields


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"could not read {path}: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return value


def _repair(folder: Path) -> str:
    if folder == base_folder():
        return f"; delete {folder}, it will be fetched again"
    return "; get the files again, or save the model again"


def _hash_model(model: PreTrainedModel) -> str:
    """Over tensors by name, so that a model in other shards, or with another file header, is still the same model."""
    digest = hashlib.sha256()
    config = model.config.to_dict()
    digest.update(json.dumps({key: config.get(key) for key in _ARITHMETIC}, sort_keys=True, default=str).encode())
    weights = sorted(model.named_parameters())
    with ThreadPoolExecutor() as pool:  # hashlib lets other threads run
        for part in pool.map(lambda item: _digest(*item), weights):
            digest.update(part)
    return digest.hexdigest()


def _hash_adapter(folder: Path) -> str:
    digest = hashlib.sha256()
    config = _read_json(folder / "adapter_config.json")
    keys = ("r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "fan_in_fan_out")
    digest.update(json.dumps({key: config.get(key) for key in keys}, sort_keys=True).encode())
    for name, weight in sorted(load_file(folder / "adapter_model.safetensors").items()):
        digest.update(_digest(name, weight))
    return digest.hexdigest()


def _digest(name: str, weight: torch.Tensor) -> bytes:
    digest = hashlib.sha256(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
    digest.update(weight.detach().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.digest()


def _hash_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Over what decides the ids; not over padding, truncation or decoding, which we do not use."""
    definition = json.loads(tokenizer.backend_tokenizer.to_str())
    parts = {key: definition.get(key) for key in ("model", "normalizer", "pre_tokenizer", "added_tokens")}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
