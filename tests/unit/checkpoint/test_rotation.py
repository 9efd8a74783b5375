from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from gircse_rag import Embedder
from gircse_rag.backends.vllm.export import export
from gircse_rag.checkpoint import checkpoint_state
from gircse_rag.checkpoint.locate import ROTATION, locate
from gircse_rag.checkpoint.rotation import Rotation, shorten
from gircse_rag.errors import CheckpointError, InputError, SpecMismatchError
from gircse_rag.spec import EmbeddingSpec

SCRIPT = Path(__file__).parents[3] / "scripts" / "fit_rotation.py"
TEXTS = ["one text", "another", "and a third one"]
load = partial(Embedder.from_pretrained, dtype="float32", device="cpu")


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture
def vectors() -> np.ndarray:
    """(400, 32) unit rows that lie near a random plane of 6 dimensions, as a model's vectors do."""
    rng = np.random.default_rng(0)
    plane = rng.standard_normal((6, 32))
    return unit(rng.standard_normal((400, 6)) @ plane + 0.1 * rng.standard_normal((400, 32)))


@pytest.fixture
def rotated_folder(tiny_folder: Path, tmp_path: Path, vectors: np.ndarray) -> Path:
    folder = shutil.copytree(tiny_folder, tmp_path / "rotated")
    Rotation.fit(vectors).write(folder)
    return folder


def test_a_fitted_rotation_keeps_the_inner_products_that_a_plain_cut_loses(vectors: np.ndarray) -> None:
    rotation = Rotation.fit(vectors)
    expected = vectors @ vectors.T

    def largest_error(rotation: Rotation | None) -> float:
        short = np.array([shorten(vector, 6, rotation) for vector in vectors])
        return float(np.abs(short @ short.T - expected).max())

    assert largest_error(rotation) < 0.2 < 0.8 < largest_error(None)
    np.testing.assert_allclose(rotation.rows @ rotation.rows.T, np.eye(32), atol=1e-3)
    with pytest.raises(InputError, match="at least 32 vectors, as many as dimensions, not 31"):
        Rotation.fit(vectors[:31])


def test_a_rotation_comes_back_from_its_file(tmp_path: Path, vectors: np.ndarray) -> None:
    rotation = Rotation.fit(vectors)
    assert Rotation.read(tmp_path) is None
    rotation.write(tmp_path)
    again = Rotation.read(tmp_path)
    assert again is not None and again.hash == rotation.hash and np.array_equal(again.rows, rotation.rows)


@pytest.mark.parametrize("options", [{"backend": "paged"}, {"backend": "reference"}, {"lazy": True}])
def test_shortened_vectors_are_rotated_before_the_cut(rotated_folder: Path, options: dict[str, Any]) -> None:
    whole, short = load(str(rotated_folder), **options), load(str(rotated_folder), dimensions=8, **options)
    rotation = Rotation.read(rotated_folder)
    assert rotation is not None
    full, cut = (e.embed(TEXTS, "document", trajectory=True) for e in (whole, short))
    assert full.trajectory is not None and cut.trajectory is not None
    np.testing.assert_allclose(cut.vectors, unit((full.vectors @ rotation.rows.T)[:, :8]), atol=1e-6)
    np.testing.assert_allclose(cut.trajectory, unit((full.trajectory @ rotation.rows.T)[..., :8]), atol=1e-6)


def test_whole_vectors_and_their_fingerprint_do_not_know_the_rotation(rotated_folder: Path, tiny_folder: Path) -> None:
    rotated, plain = load(str(rotated_folder)), load(str(tiny_folder))
    assert rotated.fingerprint == plain.fingerprint == load(str(rotated_folder), dimensions=32).fingerprint
    assert np.array_equal(rotated.embed_documents(TEXTS), plain.embed_documents(TEXTS))
    short = load(str(rotated_folder), dimensions=8)
    assert EmbeddingSpec.from_dict(short.spec.to_dict()).fingerprint == short.fingerprint
    with pytest.raises(SpecMismatchError, match="rotation_hash"):
        short.spec.check_matches(load(str(tiny_folder), dimensions=8).spec)


def test_a_vector_that_was_shortened_elsewhere_is_not_rotated_again(vectors: np.ndarray) -> None:
    rotation = Rotation.fit(vectors)
    once = shorten(vectors[0], 16, rotation)
    np.testing.assert_allclose(shorten(once, 8, rotation), shorten(vectors[0], 8, rotation), atol=1e-6)


def test_an_export_takes_the_rotation_with_it(rotated_folder: Path, tmp_path: Path) -> None:
    exported = export(str(rotated_folder), tmp_path / "exported")
    short, again = load(str(rotated_folder), dimensions=8), load(str(exported), dimensions=8)
    assert again.fingerprint == short.fingerprint
    np.testing.assert_allclose(again.embed_documents(TEXTS), short.embed_documents(TEXTS), atol=1e-6)


def test_another_rotation_is_another_state_of_the_files(rotated_folder: Path, vectors: np.ndarray) -> None:
    before = checkpoint_state(str(rotated_folder))
    Rotation.fit(vectors[:200]).write(rotated_folder)
    assert checkpoint_state(str(rotated_folder)) != before


def damage(path: Path, how: str) -> None:
    rows = np.eye(32, dtype=np.float16)
    if how == "cut":
        path.write_bytes(path.read_bytes()[:100])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "key":
        save_file({"other": rows}, path)
    elif how == "json":
        path.write_text(json.dumps({"rotation": 1}))
    else:
        save_file({"rotation": {"nan": rows * np.float16("nan"), "flat": rows[:8], "scaled": rows * 2}[how]}, path)


@pytest.mark.parametrize("how", ["cut", "empty", "key", "json", "nan", "flat", "scaled"])
def test_a_damaged_rotation_is_named(rotated_folder: Path, how: str) -> None:
    damage(rotated_folder / ROTATION, how)
    with pytest.raises(CheckpointError, match=r"rotation/model\.safetensors"):
        load(str(rotated_folder))


def test_a_rotation_of_another_model_is_refused(rotated_folder: Path) -> None:
    save_file({"rotation": np.eye(16, dtype=np.float16)}, rotated_folder / ROTATION)
    with pytest.raises(CheckpointError, match="its rotation is for 16 dimensions, but its vectors have 32"):
        load(str(rotated_folder))


@pytest.mark.slow
def test_the_script_fits_a_rotation_to_training_rows(tiny_folder: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_folder, tmp_path / "model")
    rows = [
        {"task": ("find", "same")[n % 2], "query": f"question {n}", "positive": f"text {n} of it"} for n in range(40)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    tasks = {"find": {"instruction": ["Find it", "Retrieve it"]}, "same": {"instruction": "Same", "symmetric": True}}
    (tmp_path / "tasks.json").write_text(json.dumps(tasks), encoding="utf-8")
    command: list[str | Path] = [
        sys.executable,
        SCRIPT,
        model,
        tmp_path / "rows.jsonl",
        "--tasks",
        tmp_path / "tasks.json",
    ]
    subprocess.run(
        [*command, "--rows", "20", "--output", model], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    rotation = Rotation.read(model)
    assert rotation is not None and rotation.rows.shape == (32, 32)


def test_the_shipped_rotation_keeps_what_a_plain_cut_loses() -> None:
    rotation = Rotation.read(locate("smollm2-135m").folder)
    assert rotation is not None
    vectors = np.load(Path(__file__).parents[2] / "end_to_end" / "vectors.npz")["documents_float32"]
    whole = vectors @ vectors.T

    def mean_error(rotation: Rotation | None) -> float:
        short = np.array([shorten(vector, 256, rotation) for vector in vectors])
        return float(np.abs(short @ short.T - whole).mean())

    assert mean_error(rotation) < 0.25 * mean_error(None)
