"""Export a checkpoint as one merged folder, which vLLM and `Embedder.from_pretrained` both load.

    config.json           the base model's, with our architecture; "gircse" holds the spec and a hash of the weights
    model.safetensors     base and adapter merged
    tokenizer.json, ...   unchanged, but never adds special tokens: vLLM would request them, and GIRCSE uses none
    gircse.json           templates, temperature, lengths, steps
    rotation/             for shortened vectors, if the checkpoint has one

Vector space and fingerprint are those of the exported checkpoint.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from gircse_rag.backends.vllm import ARCHITECTURES
from gircse_rag.checkpoint import Checkpoint, load_checkpoint
from gircse_rag.checkpoint.hashing import hash_model
from gircse_rag.checkpoint.progress_bars import without_progress_bars
from gircse_rag.checkpoint.spec_file import EXPORT_KEY, SPEC_FILE, spec_file_fields
from gircse_rag.errors import CheckpointError, InputError
from gircse_rag.files import rust_errors


def export(
    name: str,
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
    preset: str | None = None,
) -> Path:
    """Write the checkpoint `name` to `folder`, which must be new or empty. The write is atomic.

    Args:
        name, revision, preset: as in `Embedder.from_pretrained`.
        dtype: dtype of the written weights.

    Raises:
        CheckpointError: the checkpoint cannot be loaded.
        InputError: the folder is not empty, or cannot be written.
    """
    return write(load_checkpoint(name, dtype=dtype, device="cpu", revision=revision, preset=preset), folder)


def is_exported(folder: Path) -> bool:
    """Whether `gircse export` wrote this folder."""
    try:
        return EXPORT_KEY in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def write(checkpoint: Checkpoint, folder: Path) -> Path:
    """Write a loaded checkpoint, see `export`.

    Raises:
        CheckpointError: its tokenizer always adds special tokens.
        InputError: as `export`.
    """
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"{folder} exists and is not empty; export to a new folder")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with rust_errors(), tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
            finished = Path(scratch) / "finished"
            _write(checkpoint, finished)
            if folder.exists():
                folder.rmdir()
            finished.rename(folder)
    except OSError as error:
        raise InputError(f"could not write {folder}: {error.strerror or error}; nothing was left there") from error
    return folder


def _write(checkpoint: Checkpoint, folder: Path) -> None:
    model, spec = checkpoint.model, checkpoint.spec
    weights = hash_model(model)
    with without_progress_bars():
        model.save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["architectures"] = [ARCHITECTURES[model.config.model_type]]
    config[EXPORT_KEY] = {"spec": spec.to_dict(), "weights": weights}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (folder / SPEC_FILE).write_text(json.dumps(spec_file_fields(spec), indent=2) + "\n", encoding="utf-8")
    if checkpoint.rotation is not None:
        checkpoint.rotation.write(folder)
    _write_tokenizer(checkpoint.tokenizer, folder)


def _write_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer.json"
    definition = json.loads(path.read_text(encoding="utf-8"))
    definition["post_processor"] = _remove_special_tokens(definition.get("post_processor"))
    path.write_text(json.dumps(definition, ensure_ascii=False), encoding="utf-8")
    path = folder / "tokenizer_config.json"
    options = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**options, "add_bos_token": False, "add_eos_token": False}, indent=2), encoding="utf-8")
    reloaded = AutoTokenizer.from_pretrained(folder)
    for text in ("a", "Query: two words"):
        expected = tokenizer(text, add_special_tokens=False)["input_ids"]
        if not reloaded(text)["input_ids"] == reloaded(text, add_special_tokens=False)["input_ids"] == expected:
            raise CheckpointError(
                f"the tokenizer ({type(tokenizer).__name__}) adds special tokens to every text and this cannot be "
                "turned off, so vLLM would embed other tokens than GIRCSE; use backend='paged' for this model"
            )


def _remove_special_tokens(processor: dict[str, Any] | None) -> dict[str, Any] | None:
    """The part of a tokenizer's post-processor that adds no tokens: ByteLevel, which only adjusts offsets."""
    if processor is None:
        return None
    parts = processor["processors"] if processor["type"] == "Sequence" else [processor]
    return next((part for part in parts if part["type"] == "ByteLevel"), None)
