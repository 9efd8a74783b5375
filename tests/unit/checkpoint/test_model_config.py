from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest
import torch

from gircse_rag import Embedder
from gircse_rag.checkpoint import load_checkpoint
from gircse_rag.checkpoint.model_config import read_model_config
from gircse_rag.errors import CheckpointError
from tests import tiny

LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
LONGROPE |= {"factor": 16.0, "original_max_position_embeddings": 64}
FIXED = {
    "default": {},
    "linear": {"factor": 2.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 256},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    },
}


def _edit(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("rope", [LONGROPE, {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}])
@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
def test_rotary_frequencies_that_depend_on_the_batch_are_refused(
    tmp_path: Path, family: str, rope: dict[str, object], key: str
) -> None:
    folder = tiny.folder(tmp_path, family)
    _edit(folder, **{"rope_parameters": None, key: rope})
    with pytest.raises(CheckpointError, match=f"{rope['rope_type']}.*depend on the longest text of a batch"):
        load_checkpoint(str(folder), dtype=torch.float32, device="cpu")  # of all backends, training and export


@pytest.mark.parametrize("kind", FIXED)
@pytest.mark.parametrize("backend", ["paged", "reference"])
def test_with_other_rotary_frequencies_a_vector_does_not_depend_on_its_batch(
    tmp_path: Path, kind: str, backend: str
) -> None:
    folder = tiny.folder(tmp_path)
    _edit(folder, rope_parameters={"rope_type": kind, "rope_theta": 1e4, **FIXED[kind]})
    embedder = Embedder.from_pretrained(folder, backend=backend, dtype="float32", device="cpu")  # type: ignore[arg-type]
    alone = embedder.embed_documents(["short"])[0]
    beside = embedder.embed_documents(["a much longer text " * 20, "short"])[1]
    assert alone @ beside > 1 - 1e-5


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": 10**9},
        {"vocab_size": 10**9},
        {"vocab_size": 10**400},
        {"intermediate_size": 10**9},
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": 10**4},
        {"num_attention_heads": 10**9},
        {"num_key_value_heads": 10**9},
        {"head_dim": 10**9},
        {"max_position_embeddings": 10**12},
    ],
)
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_absurd_sizes_are_refused_before_anything_is_allocated(
    tmp_path: Path, family: str, change: dict[str, object]
) -> None:
    folder = tiny.folder(tmp_path, family)
    _edit(folder, layer_types=None, **change)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=r"larger model than its weights|max_position_embeddings above"):
            read_model_config(folder)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_fits_its_weights_is_accepted(tmp_path: Path, family: str, tied: bool, dtype: torch.dtype) -> None:
    tiny.model(family, tied=tied).to(dtype).save_pretrained(tmp_path, max_shard_size="20kB")
    assert read_model_config(tmp_path).model_type == family


@pytest.mark.parametrize("change", [{"is_causal": False}, {"attention_chunk_size": 8}, {"num_kv_shared_layers": 1}])
def test_settings_that_backends_compute_differently_are_refused(tmp_path: Path, change: dict[str, object]) -> None:
    folder = tiny.folder(tmp_path)
    _edit(folder, **change)
    with pytest.raises(CheckpointError, match=next(iter(change))):
        read_model_config(folder)


def test_a_mistral_with_layer_types_is_another_family(tmp_path: Path) -> None:
    folder = tiny.folder(tmp_path, "mistral")
    _edit(folder, layer_types=["full_attention"] * 2)
    with pytest.raises(CheckpointError, match="is a ministral model"):
        read_model_config(folder)
