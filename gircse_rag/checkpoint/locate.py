"""Find the files of a checkpoint by name.

"smollm2-135m"                 a bundled name (bundled.py)
"./my-model"                   a folder: a full model, or a PEFT adapter whose config names its base model
"Roytsai27/GIRCSE-QWEN7B"      a Hub id: full model or adapter
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from gircse_rag.checkpoint.bundled import BUNDLED, base_folder, ensure_base
from gircse_rag.checkpoint.spec_file import read_json
from gircse_rag.errors import CheckpointError, InputError, first_line

ADAPTER_CONFIG = "adapter_config.json"
ROTATION = Path("rotation", "model.safetensors")
"""In a folder of its own, because vLLM reads every .safetensors file beside config.json."""


@dataclass(frozen=True)
class Located:
    """A checkpoint's files.

    Attributes:
        name: as given to `locate`.
        folder: local folder of the full model or the adapter.
        revision: commit of the Hub repository that the files came from, or None.
    """

    name: str
    folder: Path
    revision: str | None = None

    @property
    def adapter(self) -> Path | None:
        """The folder if it holds a PEFT adapter; None if it holds a full model."""
        return self.folder if (self.folder / ADAPTER_CONFIG).exists() else None

    @cached_property
    def base_name(self) -> str:
        """Name of the base model: the one the adapter's config names, or `name` itself.

        Raises:
            CheckpointError: the adapter's config is damaged, or names no base model.
        """
        if self.adapter is None:
            return self.name
        config = self.adapter / ADAPTER_CONFIG
        base = read_json(config).get("base_model_name_or_path")
        if not isinstance(base, str) or not base:
            raise CheckpointError(f"{config} does not name its base_model_name_or_path")
        return base

    @cached_property
    def base(self) -> Located:
        """The base model, fetched if necessary: the one the adapter's config names, or this one.

        Raises:
            CheckpointError: there is no such model, or it cannot be fetched.
        """
        return self if self.adapter is None else _locate(self.base_name, self._base_revision)

    @property
    def _base_revision(self) -> str | None:
        config = self.folder / ADAPTER_CONFIG
        revision = read_json(config).get("revision")
        if revision is not None and (not isinstance(revision, str) or not revision):
            raise CheckpointError(f"{config}: revision must be a branch, tag or commit of the base model, or null")
        return revision


def locate(name: str, revision: str | None = None) -> Located:
    """Find the files of a bundled name, a folder or a Hub id. Downloads missing files.

    Args:
        name: as in `Embedder.from_pretrained`.
        revision: branch, tag or commit of a Hub id, by default its main branch.

    Raises:
        InputError: `revision` is not a name, or `name` is no Hub id.
        CheckpointError: no such model, or the download failed.
    """
    if revision is not None:
        if not isinstance(revision, str) or not revision:
            raise InputError(f"revision must be a branch, tag or commit of a Hub repository, not {revision!r}")
        if name in BUNDLED or _local_folder(name) is not None:
            kind = "a bundled model" if name in BUNDLED else "a local folder"
            raise InputError(f"revision {revision!r} is for Hub ids, but {name} is {kind}; leave it out")
    return _locate(name, revision)


def _locate(name: str, revision: str | None) -> Located:
    """As `locate`, but ignore the revision of folders and bundled models, as PEFT does for an adapter's base."""
    if name in BUNDLED:
        return Located(name, BUNDLED[name].adapter or ensure_base())
    folder = _local_folder(name)
    if folder is not None:
        if (folder / "config.json").exists() or (folder / ADAPTER_CONFIG).exists():
            return Located(name, folder)
        raise CheckpointError(
            f"{folder} holds neither config.json (a model) nor {ADAPTER_CONFIG} (a PEFT adapter); it holds "
            f"{sorted(path.name for path in folder.iterdir())[:10]}"
        )
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise CheckpointError(
            f"no model {name!r}: no such folder, no Hub id (owner/name) and no bundled name ({', '.join(BUNDLED)})"
        )
    folder = _download(name, revision)
    return Located(name, folder, folder.name if re.fullmatch("[0-9a-f]{40}", folder.name) else None)


def checkpoint_state(name: str, revision: str | None = None) -> str:
    """Return 32 hex digits that change with the files of `load_checkpoint(name)` (weights: their size, time and inode).

    Raises:
        CheckpointError: no such model.
        InputError: there is a `revision`, and `name` is no Hub id.
    """
    located = locate(name, revision)
    folders = [located.folder] if located.adapter is None else [located.folder, located.base.folder]
    digest = hashlib.sha256()
    for path in sorted(path for folder in folders for path in (*folder.iterdir(), folder / ROTATION)):
        if path.suffix == ".json":
            digest.update(f"{path.name} ".encode() + path.read_bytes())
        elif path.suffix == ".safetensors" and path.exists():
            status = path.stat()
            digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns} {status.st_ino} ".encode())
    return digest.hexdigest()[:32]


def local_base_name(name: str) -> str:
    """Return the base model of `name` according to local files: an adapter's base, or `name`. Downloads nothing."""
    try:
        folder = (BUNDLED[name].adapter or base_folder()) if name in BUNDLED else _local_folder(name)
        return name if folder is None else Located(name, folder).base_name
    except CheckpointError:
        return name  # loading the model reports the damage


def _local_folder(name: str) -> Path | None:
    try:
        folder = Path(name).expanduser()
        return folder if folder.is_dir() else None
    except (OSError, RuntimeError, ValueError) as error:  # name too long, unknown ~user, zero byte
        raise CheckpointError(f"no model {name!r}: {error}") from error


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        patterns = ["*.json", "*.safetensors", "*.txt", "*.jinja"]
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise CheckpointError(
            f"could not get {name!r}{f' (revision {revision!r})' if revision else ''} from the Hugging Face Hub: "
            f"{first_line(error)}; check the name, the network and, for a gated model, your access token"
        ) from error
