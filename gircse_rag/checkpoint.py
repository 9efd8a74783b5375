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
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from gircse_rag.bundled import BUNDLED, base_folder, ensure_base
from gircse_rag.errors import CheckpointError, InputError, first_line
from gircse_rag.hashing import hash_lora, hash_model, hash_tokenizer
from gircse_rag.lora import merge, read_weights
from gircse_rag.spec import FAMILIES, EmbeddingSpec

SPEC_FILE = "gircse.json"
EXPORTED = "gircse"
"""The key of config.json under which `gircse export` keeps the spec, and a hash of the weights it wrote."""
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

    An adapter is merged in float32, and the sum converted to `dtype`.

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
        hashing = beside.submit(hash_model, model)
        tokenizer = _load_tokenizer(adapter, base)
        tokenizer_hash, base_hash = hash_tokenizer(tokenizer), hashing.result()
    known = BUNDLED.get(base_name)
    if known and (base_hash, tokenizer_hash) != (known.base_hash, known.tokenizer_hash):
        raise CheckpointError(
            f"the cached base model in {base} is damaged or was changed (weights {base_hash[:12]}, tokenizer "
            f"{tokenizer_hash[:12]}; expected {known.base_hash[:12]}, {known.tokenizer_hash[:12]}); delete that "
            "folder, it will be fetched again"
        )
    if adapter is not None:
        lora, weights = _read_json(adapter / "adapter_config.json"), read_weights(adapter)
        model = merge(model, adapter, lora, weights, dtype)
    _check_finite(model)
    vocabulary, dimension = model.get_input_embeddings().weight.shape
    if len(tokenizer) > vocabulary:
        raise CheckpointError(
            f"{name}: the tokenizer has {len(tokenizer)} tokens, the model embeds {vocabulary}; they do "
            "not belong together: get both from one place"
        )
    origin = _origin(model, base, base_name, base_hash)
    if adapter is not None:
        origin |= {"adapter": name, "adapter_hash": hash_lora(lora, weights)}
    kind = str(dtype).removeprefix("torch.")
    spec = _spec(folder, **origin, tokenizer_hash=tokenizer_hash, dimension=dimension, dtype=kind)
    window = model.config.max_position_embeddings
    if spec.max_length + spec.document_steps > window:
        raise CheckpointError(
            f"{name}: max_length {spec.max_length} plus {spec.document_steps} steps exceed the model's window of "
            f"{window} positions; set max_length in {folder / SPEC_FILE}"
        )
    model.to(device)
    for parameter in model.parameters():  # not the buffers: frequencies of positions rounded to bfloat16 turn too far
        parameter.data = parameter.data.to(dtype)
    return Checkpoint(model.eval().requires_grad_(False), tokenizer, spec)


def load_tokenizer(name: str) -> tuple[PreTrainedTokenizerBase, dict[str, str | None]]:
    """The tokenizer of a checkpoint, and what can be known of its spec without reading the base model's weights.

    Returns:
        The tokenizer, and some of the spec's hashes by the name of their field.

    Raises:
        CheckpointError: nothing of that name, or a file is missing or damaged.
    """
    folder = _find(name)
    known: dict[str, str | None] = {"adapter_hash": None}
    if (folder / "adapter_config.json").exists():
        base_name = _base_of(folder)
        known["adapter_hash"] = hash_lora(_read_json(folder / "adapter_config.json"), read_weights(folder))
        tokenizer = _load_tokenizer(folder, _find(base_name))
    else:
        base_name = name
        tokenizer = _load_tokenizer(None, folder)
        if exported := _read_json(folder / "config.json").get(EXPORTED):
            known |= {field: _exported(folder, exported)[1][field] for field in ("base_hash", "adapter_hash")}
    if base_name in BUNDLED:
        known["base_hash"] = BUNDLED[base_name].base_hash
    return tokenizer, {**known, "tokenizer_hash": hash_tokenizer(tokenizer)}


def load_spec(name: str, *, dtype: torch.dtype) -> tuple[PreTrainedTokenizerBase, EmbeddingSpec] | None:
    """Tokenizer and spec without the model, where the base model is bundled, so that its hash is known; else None.

    Raises:
        CheckpointError: as `load_tokenizer`.
    """
    folder = _find(name)
    adapted = (folder / "adapter_config.json").exists()
    base_name = _base_of(folder) if adapted else name
    if base_name not in BUNDLED:
        return None
    tokenizer, hashes = load_tokenizer(name)
    if hashes["tokenizer_hash"] != BUNDLED[base_name].tokenizer_hash:
        return None  # a damaged copy: `load_checkpoint` says so
    spec = _spec(
        folder,
        base_model=base_name,
        adapter=name if adapted else None,
        dimension=_read_json(_find(base_name) / "config.json").get("hidden_size"),
        dtype=str(dtype).removeprefix("torch."),
        **hashes,  # base_hash is there: the base is bundled
    )
    return tokenizer, spec


def state_of(name: str) -> str:
    """32 hex digits that change whenever a file does that `load_checkpoint(name)` reads; of weights, size and time.

    Raises:
        CheckpointError: nothing of that name.
    """
    folder = _find(name)
    folders = [folder, _find(_base_of(folder))] if (folder / "adapter_config.json").exists() else [folder]
    digest = hashlib.sha256()
    for path in sorted(path for each in folders for path in each.iterdir()):
        if path.suffix == ".json":
            digest.update(f"{path.name} ".encode() + path.read_bytes())
        elif path.suffix == ".safetensors":
            status = path.stat()
            digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns} ".encode())
    return digest.hexdigest()[:32]


def _origin(model: PreTrainedModel, folder: Path, name: str, weights: str) -> dict[str, Any]:
    """What the weights are: the base model itself, or what `gircse export` merged into one folder."""
    exported = getattr(model.config, EXPORTED, None)
    if exported is None:
        return {"base_model": name, "base_hash": weights}
    known, origin = _exported(folder, exported)
    if known != weights:
        raise CheckpointError(
            f"the weights in {folder} are not those that `gircse export` wrote ({weights[:12]}, not {known[:12]}): "
            "they are damaged or were changed; export the model again"
        )
    return origin


def _exported(folder: Path, exported: Any) -> tuple[str, dict[str, Any]]:
    """The hash of the weights that `gircse export` wrote, and what they were made of."""
    try:
        origin = {field: exported["spec"][field] for field in ("base_model", "base_hash", "adapter", "adapter_hash")}
        return exported["weights"], origin
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / 'config.json'}: {EXPORTED!r} is damaged; export the model again") from error


def _find(name: str) -> Path:
    """The local folder of a bundled name, a folder or a Hub id."""
    if name in BUNDLED:
        return BUNDLED[name].adapter or ensure_base()
    try:
        folder = Path(name).expanduser()
        there = folder.is_dir()
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, ~nobody, a zero byte
        raise CheckpointError(f"no model {name!r}: {error}") from error
    if there:
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
            f"could not get {name!r} from the Hugging Face Hub: {first_line(error)}; check the name, the "
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
    except CheckpointError:
        raise
    except Exception as error:  # a config.json of other types fails in whatever reads it
        raise CheckpointError(
            f"could not load a model from {folder}: {first_line(error)}{_repair(folder)} (only safetensors are read)"
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
            f"could not load the tokenizer in {folder}: {first_line(error)}{_repair(folder)}"
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise CheckpointError(f"{folder} has no tokenizer.json; save the tokenizer as a fast one")
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    return tokenizer


def _check_finite(model: nn.Module) -> None:
    for name, weight in model.named_parameters():
        low, high = torch.aminmax(weight)
        if not (torch.isfinite(low) and torch.isfinite(high)):
            raise CheckpointError(
                f"the weights hold NaN or infinity in {name}; the file is damaged or training diverged"
            )


def read_spec_file(folder: Path) -> tuple[dict[str, Any], str | None]:
    """The spec's fields that a folder's gircse.json sets, {} without one; the pooling of a baseline, else None.

    Raises:
        CheckpointError: it is no JSON object, or sets something else.
    """
    path = folder / SPEC_FILE
    if not path.exists():
        return {}, None
    fields = _read_json(path)
    pooling = fields.pop("pooling", None)
    if unknown := sorted(set(fields) - SPEC_FILE_FIELDS):
        raise CheckpointError(f"{path} has unknown fields {unknown}; known: {sorted(SPEC_FILE_FIELDS)}")
    return fields, pooling


def _spec(folder: Path, **known: Any) -> EmbeddingSpec:
    """What is known of the weights, and what the folder's gircse.json chose."""
    fields, pooling = read_spec_file(folder)
    if pooling is not None:
        raise CheckpointError(
            f"{folder / SPEC_FILE}: trained with pooling {pooling!r}, a baseline without refinement; "
            "`gircse eval` scores it"
        )
    try:
        return EmbeddingSpec(**known, **fields)
    except InputError as error:
        raise CheckpointError(f"{folder / SPEC_FILE}: {error}") from error


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
