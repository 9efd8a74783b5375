from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gircse_rag import Embedder
from gircse_rag.errors import CheckpointError
from tests import tiny

YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
WINDOW = {"sliding_window": 8, "use_sliding_window": True}
FULL, SLIDING = "full_attention", "sliding_attention"
CHANGES: list[dict[str, Any]] = [  # to a config with a sliding window, or with yarn
    {"layer_types": [FULL, SLIDING]},
    {"layer_types": [SLIDING, FULL]},
    {"layer_types": [SLIDING, SLIDING]},
    {"layer_types": [FULL, FULL]},
    {"max_window_layers": 0, "layer_types": None},
    {"max_window_layers": 1, "layer_types": None},
    {"sliding_window": 16},
    {"use_sliding_window": False},
    {"is_causal": False},
    {"rms_norm_eps": 1e-2},
    {"hidden_act": "gelu"},
    {"original_max_position_embeddings": 128},
    {"partial_rotary_factor": 0.5},
    *(
        {"rope_parameters": YARN | change}
        for change in (
            {"factor": 2.0},
            {"factor": None},
            {"rope_theta": 500.0},
            {"beta_fast": 4.0},
            {"beta_slow": 2.0},
            {"attention_factor": 2.0},
            {"mscale": 2.0, "mscale_all_dim": 0.5},
            {"truncate": False},
            {"original_max_position_embeddings": 128},
        )
    ),
]
TEXT = ["a text of more than sixteen tokens, zebras quickly jump"]


def _embed(folder: Path, original: dict[str, Any], change: dict[str, Any]) -> tuple[str, np.ndarray] | None:
    """Fingerprint and vector with the changed config; None if the model is refused."""
    (folder / "config.json").write_text(json.dumps(original | change))
    try:
        embedder = Embedder.from_pretrained(folder, backend="reference", dtype="float32", device="cpu")
        result = embedder.embed(TEXT, "document", on_error="return")
    except CheckpointError:
        return None
    return None if result.errors else (embedder.fingerprint, result.vectors[0])


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_configs_with_different_vectors_have_different_fingerprints(tmp_path: Path, family: str) -> None:
    folder = tiny.folder(tmp_path, family)
    plain = json.loads((folder / "config.json").read_text())
    results = []
    for start in (plain, plain | WINDOW, plain | {"rope_parameters": YARN}):
        results += [_embed(folder, start, change) for change in ({}, *CHANGES)]
    # with factor null, yarn takes the factor from the window
    results.append(_embed(folder, plain, {"rope_parameters": YARN | {"factor": None}, "max_position_embeddings": 2048}))
    vectors: dict[str, np.ndarray] = {}
    for fingerprint, vector in filter(None, results):
        assert vectors.setdefault(fingerprint, vector) @ vector > 1 - 1e-6
    assert len(vectors) > 10


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_the_usual_value_written_out_keeps_the_fingerprint(tmp_path: Path, family: str) -> None:
    folder = tiny.folder(tmp_path, family)
    plain = json.loads((folder / "config.json").read_text())
    usual = _embed(folder, plain, {})
    for change in ({"layer_types": [FULL, FULL]}, {"layer_types": None}, {"max_position_embeddings": 2048}):
        written = _embed(folder, plain, change)
        assert usual and written and usual[0] == written[0]
