"""Checkpoints: from a name, a folder or a Hub id to a model, a tokenizer and the spec of its vector space.

    locate    where the files are: the folder, its adapter, its base model (imports no torch)
    bundled   the models known by name, fetched and converted once into the user's cache (imports no torch)
    spec_file gircse.json, and the entry that `gircse export` adds to config.json
    model_config  the base model's config.json, checked before anything is allocated
    lora      a PEFT LoRA adapter, merged into its base model
    rotation  shortened vectors, and the matrix that makes their leading components the important ones
    hashing   sha256 of the weights, the adapter and the tokenizer
    load      `load_checkpoint`: all of the above together
    prepared  `load_weights`: the same for the engine, from a merged copy in the user's cache
    weights/  the adapter that ships with the package

The names below load on first use, because `load` imports torch and transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gircse_rag.checkpoint.load import Checkpoint, load_checkpoint, load_hf, load_tokenizer
    from gircse_rag.checkpoint.locate import checkpoint_state
    from gircse_rag.checkpoint.prepared import load_spec, load_weights

_MODULES = {
    "Checkpoint": "load",
    "checkpoint_state": "locate",
    "load_checkpoint": "load",
    "load_hf": "load",
    "load_spec": "prepared",
    "load_tokenizer": "load",
    "load_weights": "prepared",
}

__all__ = [
    "Checkpoint",
    "checkpoint_state",
    "load_checkpoint",
    "load_hf",
    "load_spec",
    "load_tokenizer",
    "load_weights",
]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'gircse_rag.checkpoint' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"gircse_rag.checkpoint.{_MODULES[name]}"), name)
