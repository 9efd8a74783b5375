"""Save and load training state: a PEFT adapter with everything needed to resume. Folders are replaced atomically."""

from __future__ import annotations

import errno
import io
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from gircse_rag.checkpoint.spec_file import SPEC_FILE, spec_file_fields
from gircse_rag.errors import CheckpointError, InputError
from gircse_rag.files import rust_errors
from gircse_rag.spec import EmbeddingSpec
from gircse_rag.training.batches import Batches
from gircse_rag.training.config import TrainConfig

RECORD = "training.json"


def save_adapter(
    folder: Path, model: Any, base_name: str, *, revision: str | None = None, dtype: torch.dtype | None = None
) -> None:
    """Write a PEFT folder (adapter_config.json, adapter_model.safetensors).

    Args:
        folder: exists.
        model: the PEFT model.
        base_name: name of the base model.
        revision: commit of the base model on the Hub, or None. PEFT and `load_checkpoint` load that commit again.
        dtype: dtype of the saved copy, or None for the model's.
    """
    model.save_pretrained(folder)
    config_path = folder / "adapter_config.json"
    config = json.loads(config_path.read_text(encoding="utf-8"))
    config.update(base_model_name_or_path=base_name, revision=revision, inference_mode=True)
    config_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if dtype is not None:
        weights = folder / "adapter_model.safetensors"
        tensors = {name: tensor.to(dtype).contiguous() for name, tensor in load_file(weights).items()}
        save_file(tensors, weights, metadata={"format": "pt"})


def save_spec(folder: Path, spec: EmbeddingSpec, pooling: str) -> None:
    """Write gircse.json, the spec fields of the trained checkpoint."""
    chosen = dict(sorted(spec_file_fields(spec).items()))
    if pooling != "refine":
        chosen["pooling"] = pooling  # not a spec field, so that a baseline cannot load as GIRCSE
    (folder / SPEC_FILE).write_text(json.dumps(chosen, indent=2) + "\n", encoding="utf-8")


def save_state(folder: Path, model: Any, optimizer: Any, config: TrainConfig, batches: Batches, cursor: int) -> None:
    """Replace `folder/state` atomically.

    Raises:
        CheckpointError: it cannot be written, for example on a full disk. The previous state stays intact.
    """
    with replacing(folder, "state") as fresh:
        save_adapter(fresh, model, config.model, revision=batches.spec.base_revision)
        save_spec(fresh, batches.spec, config.pooling)
        buffer = io.BytesIO()  # torch.save to a path reports a full disk as an "unexpected pos"
        torch.save({"optimizer": optimizer.state_dict(), "cursor": cursor}, buffer)
        (fresh / "training.pt").write_bytes(buffer.getbuffer())
        save_record(fresh, config, batches, cursor)


def save_record(folder: Path, config: TrainConfig, batches: Batches, rows_seen: int) -> None:
    """Write training.json: the config, the number of rows seen, and a hash of the training rows."""
    record = {"rows_seen": rows_seen, "learning_rate": config.learning_rate, "rows_digest": batches.digest}
    text = json.dumps({**record, "config": config.to_dict()}, indent=2)
    (folder / RECORD).write_text(text + "\n", encoding="utf-8")


def read_record(folder: Path) -> dict[str, Any]:
    """Read training.json, as `save_record` wrote it.

    Raises:
        CheckpointError: the file cannot be read, or has other contents.
    """
    path = folder / RECORD
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        TrainConfig.of(record["config"])
        int(record["rows_seen"])
    except (OSError, ValueError, KeyError, TypeError, InputError) as error:
        raise CheckpointError(
            f"{path} was not written by training, or is damaged ({type(error).__name__}: {error})"
        ) from error
    return record


@contextmanager
def replacing(folder: Path, name: str) -> Iterator[Path]:
    """Yield an empty folder; on success it replaces `folder/name` by renames.

    Raises:
        CheckpointError: the folder could not be written; `folder/name` is unchanged.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(f".{name}-*"):  # of killed processes
            shutil.rmtree(leftover, ignore_errors=True)
        with rust_errors(), tempfile.TemporaryDirectory(dir=folder, prefix=f".{name}-") as scratch:
            fresh = Path(scratch) / name
            fresh.mkdir()
            yield fresh
            old = folder / f"{name}.old"
            if (folder / name).exists():  # else a kill fell between the two renames, and only `old` exists
                shutil.rmtree(old, ignore_errors=True)
                (folder / name).rename(old)
            fresh.rename(folder / name)
            shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        reason = "no space left on the disk" if error.errno == errno.ENOSPC else str(error)
        raise CheckpointError(f"could not save {folder / name}: {reason}; the previous version is intact") from error


def find_state(folder: Path) -> Path | None:
    """Find the last complete state of a run: `state`, or `state.old` if a kill fell between the two renames."""
    for name in ("state", "state.old"):
        if (folder / name / RECORD).exists():
            return folder / name
    return None


def rows_seen(state: Path) -> int:
    """Number of rows that a run had seen when it saved `state`."""
    return int(read_record(state)["rows_seen"])


def load_state(folder: Path, model: Any, optimizer: Any, config: TrainConfig, batches: Batches) -> int:
    """Restore adapter and optimiser; return the cursor.

    Raises:
        CheckpointError: there is no complete state, or its rows, their order or its adapter differ from this run's.
    """
    from peft import set_peft_model_state_dict

    state = find_state(folder)
    if state is None:
        raise CheckpointError(f"{folder} holds no training state to resume from")
    record = read_record(state)
    saved_config = record["config"]
    changed = [key for key, value in config.data_key.items() if saved_config.get(key) != value]
    if not changed and record.get("rows_digest", batches.digest) != batches.digest:
        changed = ["content of data or tasks"]
    if changed:
        raise CheckpointError(
            f"the state in {folder} was made with another {', '.join(changed)}, so it cannot be resumed; "
            "use the old values, or another output folder"
        )
    try:
        set_peft_model_state_dict(model, load_file(state / "adapter_model.safetensors"))
        saved = torch.load(state / "training.pt", map_location="cpu", weights_only=True)
        optimizer.load_state_dict(saved["optimizer"])
        return int(saved["cursor"])
    except Exception as error:  # torch, pickle and safetensors raise many kinds of error for a damaged file
        raise CheckpointError(
            f"the state in {state} is damaged ({type(error).__name__}: {error}): delete it to start over, or start "
            "another run from its adapter, if that is intact (`adapter:`)"
        ) from error
