"""Prepared checkpoints: equal to the full load, replaced when the original changes, and never trusted when damaged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from gircse_rag import Embedder
from gircse_rag.backends.vllm.export import export
from gircse_rag.checkpoint import load_checkpoint, load_spec, load_weights, prepared
from gircse_rag.errors import CheckpointError, GircseWarning
from gircse_rag.hardware import has_float16_products
from gircse_rag.weights import DecoderWeights
from tests import tiny
from tests.disk import SmallDisks

CPU = torch.device("cpu")
TEXTS = ["a text", '"Quoted" it is', "-> the way of the world"]


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original")
    return export(str(tiny.adapter(folder / "adapter", tiny.folder(folder / "base"))), folder / "exported")


@pytest.fixture
def exported(original: Path, tmp_path: Path) -> Path:
    """A copy of an exported model, which is prepared at its first load."""
    folder = tmp_path / "exported"
    folder.mkdir()
    for file in original.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.fixture
def small_disks(tmp_path: Path) -> Iterator[SmallDisks]:
    disks = SmallDisks(tmp_path)
    yield disks
    disks.unmount()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Where conftest.py keeps prepared files."""
    return tmp_path / "cache" / "prepared"


def load(folder: Path, dtype: torch.dtype = torch.float32) -> prepared.Prepared:
    return load_weights(str(folder), dtype=dtype, device=CPU)


def full_loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the names of checkpoints that are loaded in full."""
    names: list[str] = []

    def recording(name: str, **options: Any) -> Any:
        names.append(name)
        return load_checkpoint(name, **options)

    monkeypatch.setattr("gircse_rag.checkpoint.load.load_checkpoint", recording)
    return names


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_second_load_is_equal_and_needs_no_full_load(
    exported: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = full_loads(monkeypatch)
    first, second = load(exported, dtype), load(exported, dtype)
    assert len(loads) == 1
    assert (first.spec, first.weights.config) == (second.spec, second.weights.config)
    assert second.weights.tensors.keys() == first.weights.tensors.keys()
    assert all(torch.equal(second.weights.tensors[name], tensor) for name, tensor in first.weights.tensors.items())
    assert torch.equal(first.weights.frequencies, second.weights.frequencies)
    assert load_spec(str(exported), dtype=dtype)[1] == first.spec  # type: ignore[index]
    assert len(loads) == 1


def test_vectors_tokens_and_reports_are_equal(exported: Path) -> None:
    first, second = (Embedder.from_pretrained(exported, dtype="float32", device="cpu") for _ in range(2))
    results = [embedder.embed(TEXTS, soft_tokens=3, trajectory=True) for embedder in (first, second)]
    assert np.array_equal(results[0].vectors, results[1].vectors)
    assert results[0].soft_tokens == results[1].soft_tokens
    assert second.tokenizer("it's")["input_ids"] == first.tokenizer("it's")["input_ids"]
    assert first.fingerprint == second.fingerprint
    with pytest.warns(GircseWarning, match="longer than 512 tokens"):
        assert second.embed(["word " * 3000], "document").truncated.all()


@pytest.mark.slow
def test_the_second_start_imports_no_transformers(exported: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from gircse_rag import Embedder\n"
        "embedder = Embedder.from_pretrained(sys.argv[1], dtype='float32', device='cpu')\n"
        "embedder.embed_queries(['a text']), embedder.embed_documents(['a text'])\n"
        "print(*(name for name in ('transformers', 'sklearn', 'scipy', 'pandas', 'qdrant_client', 'peft')"
        " if name in sys.modules))"
    )
    environment = {**os.environ, "GIRCSE_CACHE": str(tmp_path / "own"), "OMP_NUM_THREADS": "1"}
    outputs = [
        subprocess.run(
            [sys.executable, "-c", program, exported], env=environment, check=True, capture_output=True, text=True
        ).stdout.split()
        for _ in range(2)
    ]
    assert "transformers" in outputs[0] and outputs[1] == []


@pytest.mark.parametrize("change", ["weights", "spec", "touched"])
def test_a_changed_original_is_loaded_in_full(exported: Path, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    load(exported)
    loads = full_loads(monkeypatch)
    file = exported / "model.safetensors"
    if change == "weights":
        weights = load_file(file)
        weights["model.norm.weight"][0] += 1
        save_file(weights, file, metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match="differ from those that `gircse export` wrote"):
            load(exported)
    elif change == "spec":
        (exported / "gircse.json").write_text(json.dumps({"document_steps": 2}))
        assert load(exported).spec.document_steps == 2
    else:
        os.utime(file, ns=(1, 1))
        load(exported)
    assert len(loads) == 1


@pytest.mark.parametrize("damage", ["flipped", "truncated", "empty", "older", "no record", "damaged record"])
def test_a_damaged_or_older_file_is_replaced(
    exported: Path, cache: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = load(exported)
    (file,) = cache.glob("*.safetensors")
    record = file.with_suffix(".json")
    content = bytearray(file.read_bytes())
    if damage == "flipped":
        content[-5] ^= 1
        file.write_bytes(content)
    elif damage == "truncated":
        file.write_bytes(content[:1000])
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "older":  # intact, but without what this version reads
        save_file({"a": torch.zeros(1)}, file, {"config": "{}"})
        prepared._write_record(file, prepared._hash(file))
    elif damage == "no record":
        record.unlink()
    else:
        record.write_text("[1")
    loads = full_loads(monkeypatch)
    found = load(exported)
    assert len(loads) == 1
    assert all(torch.equal(found.weights.tensors[name], tensor) for name, tensor in expected.weights.tensors.items())
    load(exported)
    assert len(loads) == 1, "the file was not replaced"


def test_a_copied_cache_is_hashed_once_and_trusted(
    exported: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(exported)
    (file,) = cache.glob("*.safetensors")
    file.write_bytes(file.read_bytes())  # another time
    loads = full_loads(monkeypatch)
    hashed: list[Path] = []
    original_hash = prepared._hash

    def recording(path: Path) -> str:
        hashed.append(path)
        return original_hash(path)

    monkeypatch.setattr(prepared, "_hash", recording)
    load(exported)
    load(exported)
    assert loads == [] and hashed == [file]


def test_a_full_disk_costs_only_the_preparation(
    exported: Path, small_disks: SmallDisks, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = small_disks.mount("64k")
    monkeypatch.setattr(prepared, "cache_folder", lambda: disk)
    with pytest.warns(GircseWarning, match="could not keep the prepared model.*GIRCSE_CACHE"):
        found = load(exported)
    assert found.weights.tensors
    assert not [path for path in disk.rglob("*") if path.is_file()]


def test_a_folder_that_cannot_be_made_costs_only_the_preparation(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(prepared, "cache_folder", lambda: tmp_path / "file")
    with pytest.warns(GircseWarning, match="could not keep the prepared model"):
        assert load(exported).weights.tensors


def test_threads_may_prepare_the_same_model_at_once(exported: Path, cache: Path) -> None:
    start, results = threading.Barrier(4), []

    def work() -> None:
        start.wait()
        results.append(load(exported))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4 and len({result.spec.fingerprint for result in results}) == 1
    assert sorted(path.suffix for path in cache.iterdir()) == [".json", ".safetensors"]
    assert load(exported).spec == results[0].spec


@pytest.mark.slow
def test_processes_may_prepare_the_same_model_at_once(exported: Path, tmp_path: Path) -> None:
    program = (
        "import sys, torch; from gircse_rag.checkpoint import load_weights\n"
        "print(load_weights(sys.argv[1], dtype=torch.float32, device=torch.device('cpu')).spec.fingerprint)"
    )
    environment = {**os.environ, "GIRCSE_CACHE": str(tmp_path / "own"), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([sys.executable, "-c", program, exported], env=environment, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    outputs = {process.communicate()[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0] and len(outputs) == 1
    files = sorted(path.suffix for path in (tmp_path / "own" / "prepared").iterdir())
    assert files == [".json", ".safetensors"]


def test_only_the_most_recently_used_files_stay(exported: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared, "MAX_FILES", 2)
    load(exported, torch.float32)
    load(exported, torch.bfloat16)
    for age, record in enumerate(sorted(cache.glob("*"), key=lambda path: path.stat().st_mtime)):
        os.utime(record, (1000 + age, 1000 + age))
    loads = full_loads(monkeypatch)
    load(exported, torch.float32)  # used: bfloat16 is now the oldest
    load(exported, torch.float16)
    load(exported, torch.float32)
    assert len(loads) == 1
    load(exported, torch.bfloat16)
    assert len(loads) == 2
    assert len(list(cache.glob("*.safetensors"))) == len(list(cache.glob("*.json"))) == 2


def test_plain_folders_and_large_models_are_not_prepared(
    exported: Path, tiny_folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(tiny_folder)
    monkeypatch.setattr(prepared, "MAX_SOURCE_BYTES", 1000)
    load(exported)
    assert not cache.exists()


def test_check_prepared_finds_what_the_record_does_not_show(exported: Path, cache: Path) -> None:
    load(exported)
    assert prepared.check_prepared(str(exported), dtype=torch.float32)
    (file,) = cache.glob("*.safetensors")
    tensors = load_file(file)
    tensors["model.norm.weight"][0] += 1
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        metadata = json.loads(opened.read(size))["__metadata__"]
    save_file(tensors, file, metadata)
    prepared._write_record(file, prepared._hash(file))
    assert not prepared.check_prepared(str(exported), dtype=torch.float32)
    assert not file.exists()


@pytest.fixture
def huge(tmp_path: Path) -> Path:
    """A model with a weight of 1e5, which float16 cannot hold."""
    model = tiny.model()
    model.model.layers[1].mlp.down_proj.weight[3, 4] = 1e5
    model.save_pretrained(tmp_path / "huge")
    tiny.tokenizer().save_pretrained(tmp_path / "huge")
    return tmp_path / "huge"


def test_weights_beyond_float16_fall_back_to_float32(huge: Path) -> None:
    with pytest.warns(GircseWarning, match=r"layers\.1\.mlp\.down_proj\.weight exceed float16's largest number, 65504"):
        embedder = Embedder.from_pretrained(huge, dtype="float16", device="cpu")
    assert embedder.spec.dtype == "float32"
    expected = Embedder.from_pretrained(huge, dtype="float32", device="cpu")
    assert np.array_equal(embedder.embed_queries(TEXTS), expected.embed_queries(TEXTS))


def test_merged_weights_beyond_float16_fall_back_to_float32(tmp_path: Path) -> None:
    adapter = tiny.adapter(tmp_path / "adapter", tiny.folder(tmp_path / "base"))
    file = adapter / "adapter_model.safetensors"
    weights = {
        name: tensor * (3000 if "layers.0.self_attn.o_proj" in name else 1) for name, tensor in load_file(file).items()
    }
    save_file(weights, file)
    with pytest.warns(GircseWarning, match=r"layers\.0\.self_attn\.o_proj"):
        found = load_checkpoint(str(adapter), dtype=torch.float16, device="cpu")
    expected = load_checkpoint(str(adapter), dtype=torch.float32, device="cpu")
    assert found.spec == expected.spec
    tensors = DecoderWeights.of(expected.model).tensors
    assert all(torch.equal(tensors[name], tensor) for name, tensor in DecoderWeights.of(found.model).tensors.items())


@pytest.mark.skipif(not has_float16_products(), reason="this CPU has no FBGEMM")
def test_a_lazy_embedder_takes_the_fallback_too(huge: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = export(str(huge), tmp_path / "exported")
    with pytest.warns(GircseWarning, match="exceed float16"):
        Embedder.from_pretrained(folder, dtype="float16", device="cpu")
    lazy = Embedder.from_pretrained(folder, dtype="float16", device="cpu", lazy=True)
    assert np.isfinite(lazy.embed_queries(TEXTS)).all()
