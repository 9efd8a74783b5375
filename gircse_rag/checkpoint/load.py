"""Load a checkpoint: base model + adapter + tokenizer + spec.

Reads only safetensors, and the one pinned GGUF of bundled.py. Never unpickles, never runs remote code.
"""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from gircse_rag.checkpoint.bundled import BUNDLED
from gircse_rag.checkpoint.hashing import hash_lora, hash_model, hash_tokenizer
from gircse_rag.checkpoint.locate import ADAPTER_CONFIG, Located, locate
from gircse_rag.checkpoint.lora import FLOAT16_MAX, merge_lora, read_lora
from gircse_rag.checkpoint.model_config import advice, read_model_config
from gircse_rag.checkpoint.presets import check_preset, preset_fields
from gircse_rag.checkpoint.progress_bars import without_progress_bars
from gircse_rag.checkpoint.rotation import Rotation
from gircse_rag.checkpoint.spec_file import EXPORT_KEY, SPEC_FILE, make_spec, read_export, read_json
from gircse_rag.errors import CheckpointError, GircseWarning, first_line, plural
from gircse_rag.spec import EmbeddingSpec


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model with its tokenizer and spec.

    Attributes:
        model: a plain transformers causal LM with the adapter merged, in eval mode, on its device.
        tokenizer: its fast tokenizer.
        spec: its vector space.
        rotation: for shortened vectors, or None.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    spec: EmbeddingSpec
    rotation: Rotation | None = None


def load_hf(
    name: str,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    revision: str | None = None,
    preset: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load model and tokenizer as plain transformers objects, with the adapter merged.

        model, tokenizer = load_hf("smollm2-135m")

    Args:
        name: a bundled name, a folder or a Hub id.
        dtype: of the parameters.
        device: of the model.
        revision: branch, tag or commit of a Hub id (default: its main branch).
        preset: as in `Embedder.from_pretrained`; it changes neither model nor tokenizer.

    Raises:
        CheckpointError, InputError: as `load_checkpoint`.
    """
    checkpoint = load_checkpoint(name, dtype=dtype, device=device, revision=revision, preset=preset)
    return checkpoint.model, checkpoint.tokenizer


def load_checkpoint(
    name: str,
    *,
    dtype: torch.dtype,
    device: str | torch.device,
    revision: str | None = None,
    preset: str | None = None,
) -> Checkpoint:
    """Load base model, adapter, tokenizer and spec. Merges in float32, then converts to `dtype`.

    Raises:
        CheckpointError: no such model; a file is missing, truncated or tampered with; the family or a setting of
            config.json is not supported; the adapter does not fit; the weights hold NaN. The message names the file or
            layer.
        InputError: there is a `revision`, and `name` is no Hub id; there is no such `preset`, or gircse.json makes it
            superfluous.

    Warns:
        GircseWarning: float16 cannot hold a weight; the model is loaded in float32.
    """
    check_preset(preset)
    located = locate(name, revision)
    base = located.base.folder
    model = _load_model(base)
    with ThreadPoolExecutor(1) as pool:  # hashing half a gigabyte takes as long as parsing the tokenizer
        hashing = pool.submit(hash_model, model)
        tokenizer = _load_tokenizer(located.adapter, base)
        tokenizer_hash, base_hash = hash_tokenizer(tokenizer), hashing.result()
    _check_bundled(located, base_hash, tokenizer_hash)
    origin = _read_origin(model, located.base, base_hash)
    if located.adapter is not None:
        config, weights = read_json(located.adapter / ADAPTER_CONFIG), read_lora(located.adapter)
        model = merge_lora(model, located.adapter, config, weights, dtype)
        origin |= {"adapter": name, "adapter_hash": hash_lora(config, weights), "adapter_revision": located.revision}
    if (beyond := _check_weights(model)) is not None and dtype == torch.float16:
        warnings.warn(
            f"{name}: the weights of {beyond} exceed float16's largest number, {FLOAT16_MAX:.0f}; computing in float32",
            GircseWarning,
            stacklevel=2,
        )
        return load_checkpoint(name, dtype=torch.float32, device=device, revision=revision, preset=preset)
    vocabulary, dimension = model.get_input_embeddings().weight.shape
    if len(tokenizer) > vocabulary:
        raise CheckpointError(
            f"{name}: the tokenizer has {len(tokenizer)} tokens, but the model embeds {vocabulary}; they "
            "belong to different models: get both from the same source"
        )
    window = model.config.max_position_embeddings
    spec = make_spec(
        located.folder,
        **origin,
        **preset_fields(located, preset, tokenizer, window),
        tokenizer_hash=tokenizer_hash,
        dimension=dimension,
        dtype=_dtype_name(dtype),
    )
    if spec.max_length + spec.document_steps > window:
        raise CheckpointError(
            f"{name}: max_length {spec.max_length} plus {spec.document_steps} steps exceed the model's window of "
            f"{window} positions; set max_length in {located.folder / SPEC_FILE}"
        )
    model.to(device)
    for parameter in model.parameters():  # not buffers: rotary frequencies must stay float32
        parameter.data = parameter.data.to(dtype)
    return Checkpoint(model.eval().requires_grad_(False), tokenizer, spec, Rotation.read(located.folder))


def load_tokenizer(name: str, revision: str | None = None) -> tuple[PreTrainedTokenizerBase, dict[str, str | None]]:
    """Load a checkpoint's tokenizer, and the spec hashes that need no base weights.

    Returns:
        The tokenizer, and {spec field: hash}.

    Raises:
        CheckpointError: no such model, or a file is missing or damaged.
        InputError: there is a `revision`, and `name` is no Hub id.
    """
    return _load_tokenizer_and_hashes(locate(name, revision))


def _load_tokenizer_and_hashes(located: Located) -> tuple[PreTrainedTokenizerBase, dict[str, str | None]]:
    hashes: dict[str, str | None] = {"adapter_hash": None}
    if located.adapter is not None:
        hashes["adapter_hash"] = hash_lora(read_json(located.adapter / ADAPTER_CONFIG), read_lora(located.adapter))
    tokenizer = _load_tokenizer(located.adapter, located.base.folder)
    if located.adapter is None and (entry := read_json(located.folder / "config.json").get(EXPORT_KEY)):
        origin = read_export(located.folder, entry)[1]
        hashes |= {field: origin[field] for field in ("base_hash", "adapter_hash")}
    if located.base_name in BUNDLED:
        hashes["base_hash"] = BUNDLED[located.base_name].base_hash
    return tokenizer, {**hashes, "tokenizer_hash": hash_tokenizer(tokenizer)}


def load_spec(
    name: str, *, dtype: torch.dtype, revision: str | None = None
) -> tuple[PreTrainedTokenizerBase, EmbeddingSpec] | None:
    """Load tokenizer and spec without the model; None unless the base model is bundled, because of its known hash.

    Raises:
        CheckpointError, InputError: as `load_tokenizer`.
    """
    located = locate(name, revision)
    if located.base_name not in BUNDLED:
        return None
    tokenizer, hashes = _load_tokenizer_and_hashes(located)
    if hashes["tokenizer_hash"] != BUNDLED[located.base_name].tokenizer_hash:
        return None  # a damaged copy: `load_checkpoint` reports it
    spec = make_spec(
        located.folder,
        base_model=located.base_name,
        adapter=None if located.adapter is None else name,
        adapter_revision=None if located.adapter is None else located.revision,
        dimension=read_json(located.base.folder / "config.json").get("hidden_size"),
        dtype=_dtype_name(dtype),
        **hashes,  # base_hash is among them: the base is bundled
    )
    return tokenizer, spec


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _check_bundled(located: Located, base_hash: str, tokenizer_hash: str) -> None:
    bundled = BUNDLED.get(located.base_name)
    if bundled and (base_hash, tokenizer_hash) != (bundled.base_hash, bundled.tokenizer_hash):
        raise CheckpointError(
            f"the cached base model in {located.base.folder} is damaged or modified (weights {base_hash[:12]}, "
            f"tokenizer {tokenizer_hash[:12]}; expected {bundled.base_hash[:12]}, {bundled.tokenizer_hash[:12]}); "
            "delete that folder, and it will be fetched again"
        )


def _read_origin(model: PreTrainedModel, base: Located, weights_hash: str) -> dict[str, Any]:
    """Spec fields for the origin of the weights: the base model, or the models that `gircse export` merged."""
    entry = getattr(model.config, EXPORT_KEY, None)
    if entry is None:
        return {"base_model": base.name, "base_hash": weights_hash, "base_revision": base.revision}
    exported_hash, origin = read_export(base.folder, entry)
    if exported_hash != weights_hash:
        raise CheckpointError(
            f"the weights in {base.folder} differ from those that `gircse export` wrote ({weights_hash[:12]}, expected "
            f"{exported_hash[:12]}): they are damaged or modified; export the model again"
        )
    return origin


def _load_model(folder: Path) -> PreTrainedModel:
    if (folder / ADAPTER_CONFIG).exists():  # transformers would apply it, unhashed
        raise CheckpointError(
            f"{folder} should be a base model but holds an adapter too; put the adapter into another folder"
        )
    try:
        config = read_model_config(folder)
        with without_progress_bars():  # reading a local folder takes a second
            model, info = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype="auto",
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except CheckpointError:
        raise
    except Exception as error:  # wrong types in config.json raise many kinds of error
        raise CheckpointError(
            f"could not load a model from {folder}: {first_line(error)}{advice(folder)} (only safetensors are read)"
        ) from error
    if missing := sorted(info["missing_keys"]):
        raise CheckpointError(
            f"{folder} lacks {plural(len(missing), 'weight')} of a causal LM, first {missing[0]}{advice(folder)}"
        )
    if unexpected := sorted(key for key in info["unexpected_keys"] if not key.endswith("rotary_emb.inv_freq")):
        raise CheckpointError(
            f"{folder} has {plural(len(unexpected), 'weight')} that a {config.model_type} has no place for, first "
            f"{unexpected[0]}: its config.json belongs to another model{advice(folder)}"
        )
    assert isinstance(model, PreTrainedModel)
    return model


def _load_tokenizer(adapter: Path | None, base: Path) -> PreTrainedTokenizerBase:
    folder = adapter if adapter and (adapter / "tokenizer.json").exists() else base
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # the Rust tokenizer raises bare Exception for a damaged file
        reason = f"{first_line(error)}{advice(folder)}"
        raise CheckpointError(f"could not load the tokenizer in {folder}: {reason}") from error
    if not getattr(tokenizer, "is_fast", False):
        raise CheckpointError(f"{folder} has no tokenizer.json; save its tokenizer as a fast tokenizer")
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    return tokenizer


def _check_weights(model: nn.Module) -> str | None:
    """Refuse weights that are not finite; return the name of a layer that float16 cannot hold, or None."""
    beyond = None
    for name, weight in model.named_parameters():
        largest = torch.stack(torch.aminmax(weight)).abs().max()
        if not largest.isfinite():
            raise CheckpointError(
                f"the weights hold NaN or infinity in {name}; the file is damaged or training diverged"
            )
        if largest > FLOAT16_MAX:
            beyond = name
    return beyond
