"""JSON files beside the weights: `gircse.json`, and the entry that `gircse export` adds to `config.json`."""

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
        "pooling",
    }
)
"""Spec fields that the author of a checkpoint chooses. All others follow from the weights."""
BASELINE_POOLINGS = ("last", "mean")
"""Values of "pooling" in the gircse.json of a pooling baseline. GIRCSE's own "mean" is never written there."""
EXPORT_KEY = "gircse"
"""Key in config.json where `gircse export` stores the spec and the hash of the exported weights."""


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: the file cannot be read, or holds no JSON object.
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
        The spec fields it sets ({} if there is no file), and a baseline's pooling ("last" or "mean") or None.

    Raises:
        CheckpointError: the file is not a JSON object, or sets an unknown field.
    """
    path = folder / SPEC_FILE
    if not path.exists():
        return {}, None
    fields = read_json(path)
    pooling = fields.pop("pooling") if fields.get("pooling") in BASELINE_POOLINGS else None
    if unknown := sorted(set(fields) - SPEC_FILE_FIELDS):
        raise CheckpointError(f"{path} has unknown fields {unknown}; known: {sorted(SPEC_FILE_FIELDS)}")
    return fields, pooling


def spec_file_fields(spec: EmbeddingSpec) -> dict[str, Any]:
    """The contents of a gircse.json that describes `spec`."""
    written = SPEC_FILE_FIELDS if spec.pools_prompt else SPEC_FILE_FIELDS - {"pooling"}
    return {name: value for name, value in spec.to_dict().items() if name in written}


def make_spec(folder: Path, **fixed: Any) -> EmbeddingSpec:
    """Build the spec from `fixed` (fields that follow from the weights or a preset) and the folder's gircse.json.

    Raises:
        CheckpointError: gircse.json is damaged, holds a value out of range, or belongs to a pooling baseline.
    """
    fields, pooling = read_spec_file(folder)
    if pooling is not None:
        raise CheckpointError(
            f"{folder / SPEC_FILE}: this is a baseline trained with pooling {pooling!r}, without refinement; "
            "only `gircse eval` can load it"
        )
    try:
        return EmbeddingSpec(**fixed, **fields)
    except InputError as error:
        raise CheckpointError(f"{folder / SPEC_FILE}: {error}") from error


def read_export(folder: Path, entry: Any) -> tuple[str, dict[str, Any]]:
    """Parse the entry that `gircse export` stored under EXPORT_KEY.

    Returns:
        The hash of the exported weights, and the spec fields of their origin: names, hashes and revisions.

    Raises:
        CheckpointError: the entry is damaged.
    """
    try:
        origin = {field: entry["spec"][field] for field in ("base_model", "base_hash", "adapter", "adapter_hash")}
        origin |= {field: entry["spec"].get(field) for field in ("base_revision", "adapter_revision")}
        return entry["weights"], origin
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / 'config.json'}: {EXPORT_KEY!r} is damaged; export the model again") from error
