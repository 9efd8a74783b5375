"""Prepared checkpoints: a quick start without transformers.

The first load merges the adapter, hashes everything and verifies the hashes (load.py). It then keeps the result in one
file of the user's cache, which later starts map into memory:

    prepared/NAME-STATE.safetensors    weights in the dtype of the products; metadata: settings, tokenizer, spec
    prepared/NAME-STATE.json           sha256 of that file, and its size, time and inode when it was hashed

STATE changes with the original files, the dtype and FORMAT, so a changed model is loaded and verified in full again. A
prepared file whose size, time or inode changed is hashed again. Only bundled and exported models are prepared: their
hashes are known.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import threading
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer

from gircse_rag.checkpoint.bundled import BUNDLED, cache_folder
from gircse_rag.checkpoint.locate import checkpoint_state, locate
from gircse_rag.checkpoint.spec_file import EXPORT_KEY, read_json
from gircse_rag.errors import CheckpointError, GircseWarning, first_line
from gircse_rag.files import atomic_write
from gircse_rag.spec import EmbeddingSpec
from gircse_rag.weights import EMBEDDINGS, DecoderConfig, DecoderWeights

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT = 1
MAX_SOURCE_BYTES = 2 * 2**30  # larger models are not copied into the cache
MAX_FILES = 4  # the least recently used are deleted
_FREQUENCIES = "rotary.frequencies"
_loading = threading.Lock()  # transformers cannot load two models at once: one of them would lack its tied head


def _renew_lock() -> None:
    """In a forked process: a thread that held the lock does not exist there."""
    global _loading
    _loading = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


@dataclass(frozen=True)
class Prepared:
    """What an embedder needs of a checkpoint.

    Attributes:
        weights: merged, in the dtype of `spec`.
        tokenizer: the fast tokenizer.
        spec: the vector space.
    """

    weights: DecoderWeights
    tokenizer: Tokenizer | PreTrainedTokenizerBase
    spec: EmbeddingSpec


def load_weights(
    name: str, *, dtype: torch.dtype, device: torch.device, revision: str | None = None, preset: str | None = None
) -> Prepared:
    """Load a checkpoint for the engine: from its prepared file, or in full, and then prepare it.

    Raises:
        CheckpointError, InputError: as `load_checkpoint`.

    Warns:
        GircseWarning: the prepared file could not be written; the next start takes as long as this one.
    """
    path = _path(name, dtype, revision) if device.type == "cpu" and preset is None else None
    if path is not None and (prepared := _read(path)) is not None:
        return prepared
    from gircse_rag.checkpoint.load import load_checkpoint

    with _loading:
        if path is not None and (prepared := _read(path)) is not None:  # meanwhile, by another thread
            return prepared
        checkpoint = load_checkpoint(name, dtype=dtype, device=device, revision=revision, preset=preset)
        prepared = Prepared(DecoderWeights.of(checkpoint.model), checkpoint.tokenizer, checkpoint.spec)
        if path is not None:
            _write(path, prepared.weights, checkpoint.tokenizer.backend_tokenizer, checkpoint.spec)
    return prepared


def load_spec(
    name: str, *, dtype: torch.dtype, revision: str | None = None
) -> tuple[Tokenizer | PreTrainedTokenizerBase, EmbeddingSpec] | None:
    """Load tokenizer and spec without the weights; None unless their hashes are known (bundled, or prepared).

    Raises:
        CheckpointError, InputError: as `load_tokenizer`.
    """
    path = _path(name, dtype, revision)
    if path is not None and _is_intact(path):
        try:
            with safe_open(path, framework="pt") as file:
                return _parse(file.metadata())
        except (OSError, SafetensorError, KeyError, ValueError, TypeError):
            pass  # an older format or a damaged file: `load_weights` replaces it
    if locate(name, revision).base_name not in BUNDLED:
        return None
    from gircse_rag.checkpoint import load

    return load.load_spec(name, dtype=dtype, revision=revision)


def check_prepared(name: str, *, dtype: torch.dtype) -> bool:
    """Compare the prepared file with a full load of the original files; delete it if it differs.

    Returns:
        False if it differed: the next start prepares it again. True also if there is none.

    Raises:
        CheckpointError: as `load_checkpoint`.
    """
    path = _path(name, dtype)
    prepared = None if path is None else _read(path)
    if path is None or prepared is None:
        return True
    from gircse_rag.checkpoint.load import load_checkpoint

    checkpoint = load_checkpoint(name, dtype=dtype, device="cpu")
    expected, found = DecoderWeights.of(checkpoint.model), prepared.weights
    same = (
        (prepared.spec, found.config) == (checkpoint.spec, expected.config)
        and found.tensors.keys() == expected.tensors.keys()
        and all(torch.equal(found.tensors[name], tensor) for name, tensor in expected.tensors.items())
    )
    if not same:
        _delete(path)
    return same


def _path(name: str, dtype: torch.dtype, revision: str | None = None) -> Path | None:
    """Where the prepared file of a checkpoint is or will be; None if it is not to be prepared."""
    located = locate(name, revision)
    if located.base_name not in BUNDLED:
        if located.adapter is not None or EXPORT_KEY not in read_json(located.folder / "config.json"):
            return None
        if sum(path.stat().st_size for path in located.folder.glob("*.safetensors")) > MAX_SOURCE_BYTES:
            return None
    key = json.dumps([FORMAT, name, located.revision, str(dtype), checkpoint_state(name, revision)])
    label = re.sub(r"[^\w.-]+", "_", Path(name).name)[:60]
    return cache_folder() / "prepared" / f"{label}-{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"


def _read(path: Path) -> Prepared | None:
    if not _is_intact(path):
        return None
    try:
        with safe_open(path, framework="pt") as file:
            settings = json.loads(file.metadata()["config"])
            config = DecoderConfig(**{**settings, "unsupported": tuple(settings["unsupported"])})
            tokenizer, spec = _parse(file.metadata())
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        # The engine keeps these two and packs the rest. Copies free the mapped file, which counts as memory.
        for name in (EMBEDDINGS, _FREQUENCIES):
            tensors[name] = tensors[name].clone()
        return Prepared(DecoderWeights(config, tensors, tensors.pop(_FREQUENCIES)), tokenizer, spec)
    except (OSError, SafetensorError, KeyError, ValueError, TypeError):
        _delete(path)
        return None


def _parse(metadata: dict[str, str]) -> tuple[Tokenizer, EmbeddingSpec]:
    try:
        return Tokenizer.from_str(metadata["tokenizer"]), EmbeddingSpec.from_dict(json.loads(metadata["spec"]))
    except Exception as error:  # of another version; the Rust tokenizer raises bare Exception
        raise ValueError(first_line(error)) from error


def _write(path: Path, weights: DecoderWeights, tokenizer: Tokenizer, spec: EmbeddingSpec) -> None:
    tensors = {name: tensor.detach().contiguous() for name, tensor in weights.tensors.items()}
    tensors[_FREQUENCIES] = weights.frequencies
    metadata = {
        "config": json.dumps(asdict(weights.config)),
        "tokenizer": tokenizer.to_str(),
        "spec": json.dumps(spec.to_dict()),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as scratch:
            save_file(tensors, scratch, metadata)
            digest = _hash(scratch)
            with scratch.open("rb") as file:
                os.fsync(file.fileno())
        _write_record(path, digest)
        _delete_old(path.parent)
    except (OSError, SafetensorError) as error:
        warnings.warn(
            f"could not keep the prepared model in {path.parent}: {error}; every start will take as long as this one. "
            "Free some disk space, or set GIRCSE_CACHE to a writable folder",
            GircseWarning,
            stacklevel=3,
        )


def _is_intact(path: Path) -> bool:
    """Whether the file is the one that was hashed; hashes it again if its size, time or inode changed."""
    record = path.with_suffix(".json")
    try:
        known = read_json(record)
        changed = known.get("status") != _status(path)
        if changed and _hash(path) != known.get("sha256"):
            _delete(path)
            return False
    except (OSError, CheckpointError):
        return False
    with contextlib.suppress(OSError):  # a read-only cache
        if changed:
            _write_record(path, str(known["sha256"]))
        else:
            os.utime(record)  # the least recently used are deleted
    return True


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_record(path: Path, digest: str) -> None:
    with atomic_write(path.with_suffix(".json")) as scratch:
        scratch.write_text(json.dumps({"sha256": digest, "status": _status(path)}), encoding="utf-8")


def _status(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ino]


def _delete_old(folder: Path) -> None:
    """Delete all but the most recently used files, and what killed processes left of theirs."""
    for scratch in folder.glob(".*.partial"):
        if time.time() - scratch.stat().st_mtime > 3600:
            scratch.unlink(missing_ok=True)

    def last_used(path: Path) -> float:
        record = path.with_suffix(".json")
        return max(file.stat().st_mtime for file in (path, record) if file.exists())

    for path in sorted(folder.glob("*.safetensors"), key=last_used)[:-MAX_FILES]:
        _delete(path)


def _delete(path: Path) -> None:
    with contextlib.suppress(OSError):  # a read-only cache: the file is neither used nor replaced
        path.unlink(missing_ok=True)
        path.with_suffix(".json").unlink(missing_ok=True)
