"""The JSON files beside the weights: `gircse.json`, and what `gircse export` recorded in `config.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gircse_rag.errors import CheckpointError, InputError
from gircse_rag.spec import EmbeddingSpec

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
"""The spec fields that the author of a checkpoint chooses; all others follow from the weights."""
EXPORT_KEY = "gircse"
"""The key of config.json under which `gircse export` keeps the spec and a hash of the exported weights."""


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: the file cannot be read, or does not hold a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"could not read {path}: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return value


def read_spec_file(folder: Path) -> tuple[dict[str, Any], str | None]:
    """Read a folder's gircse.json.

    Returns:
        The spec fields it sets ({} without such a file), and the pooling of a baseline ("last" or "mean") or None.

    Raises:
        CheckpointError: the file is not a JSON object, or sets an unknown field.
    """
    path = folder / SPEC_FILE
    if not path.exists():
        return {}, None
    fields = read_json(path)
    pooling = fields.pop("pooling", None)
    if unknown := sorted(set(fields) - SPEC_FILE_FIELDS):
        raise CheckpointError(f"{path} has unknown fields {unknown}; known: {sorted(SPEC_FILE_FIELDS)}")
    return fields, pooling


def make_spec(folder: Path, **fixed: Any) -> EmbeddingSpec:
    """Build the spec: `fixed` follows from the weights, the rest comes from the folder's gircse.json.

    Raises:
        CheckpointError: gircse.json is damaged, holds a value out of range, or belongs to a pooling baseline.
    """
    fields, pooling = read_spec_file(folder)
    if pooling is not None:
        raise CheckpointError(
            f"{folder / SPEC_FILE}: trained with pooling {pooling!r}, a baseline without refinement; "
            "`gircse eval` scores it"
        )
    try:
        return EmbeddingSpec(**fixed, **fields)
    except InputError as error:
        raise CheckpointError(f"{folder / SPEC_FILE}: {error}") from error


def read_export(folder: Path, entry: Any) -> tuple[str, dict[str, Any]]:
    """Take apart what `gircse export` recorded under EXPORT_KEY.

    Returns:
        The hash of the exported weights, and the spec fields that name their origin: base model, adapter, hashes.

    Raises:
        CheckpointError: the entry is damaged.
    """
    try:
        origin = {field: entry["spec"][field] for field in ("base_model", "base_hash", "adapter", "adapter_hash")}
        return entry["weights"], origin
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / 'config.json'}: {EXPORT_KEY!r} is damaged; export the model again") from error
