from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from peft import LoraConfig, get_peft_model

from gircse_rag import Embedder
from gircse_rag.backends.vllm.export import export
from gircse_rag.checkpoint import checkpoint_state, load_checkpoint, load_tokenizer
from gircse_rag.errors import CheckpointError, InputError
from gircse_rag.spec import EmbeddingSpec
from gircse_rag.training.saving import save_adapter
from tests import tiny


def _set_revision(adapter: Path, revision: object) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "revision": revision}))


def _base_hash(adapter: Path) -> str:
    return load_checkpoint(str(adapter), dtype=torch.float32, device="cpu").spec.base_hash


def _commit(number: int) -> str:
    return str(number) * 40


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hub cache, with no network behind it: someone/base and someone/adapter, each as main and as v1.2."""
    hub = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(hub))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for seed, revision in enumerate(("main", "v1.2")):
        for name, number in (("base", seed), ("adapter", 5 + seed)):
            root = hub / f"models--someone--{name}"
            (root / "refs").mkdir(parents=True, exist_ok=True)
            (root / "refs" / revision).write_text(_commit(number))
            snapshot = root / "snapshots" / _commit(number)
            if name == "base":
                tiny.folder(snapshot, seed=seed)
            else:
                snapshot.parent.mkdir(exist_ok=True)
                tiny.adapter(snapshot, "someone/base", seed=number)
    return hub


def test_an_adapter_gets_the_revision_that_it_names(tmp_path: Path, hub: Path) -> None:
    adapter = tiny.adapter(tmp_path / "adapter", "someone/base")
    newest = _base_hash(adapter)
    _set_revision(adapter, "v1.2")
    tagged = _base_hash(adapter)
    _set_revision(adapter, "0" * 40)
    assert newest == _base_hash(adapter) != tagged
    _set_revision(adapter, "v2")
    with pytest.raises(CheckpointError, match=r"could not get 'someone/base' \(revision 'v2'\)"):
        _base_hash(adapter)


def _spec(name: str, revision: str | None) -> EmbeddingSpec:
    return Embedder.from_pretrained(name, revision=revision, device="cpu", dtype="float32").spec


def test_the_revision_of_a_hub_id_is_loaded_and_its_commit_recorded(hub: Path) -> None:
    main, tagged = _spec("someone/base", None), _spec("someone/base", "v1.2")
    assert (main.base_revision, tagged.base_revision) == (_commit(0), _commit(1))
    assert main.base_hash != tagged.base_hash and main.fingerprint != tagged.fingerprint
    assert _spec("someone/base", _commit(1)) == tagged
    with pytest.raises(CheckpointError, match=r"could not get 'someone/base' \(revision 'v9'\)"):
        _spec("someone/base", "v9")


def test_the_revision_of_an_adapter_is_its_own_and_not_its_bases(hub: Path) -> None:
    main, tagged = _spec("someone/adapter", None), _spec("someone/adapter", "v1.2")
    assert (main.base_revision, main.adapter_revision) == (_commit(0), _commit(5))
    assert (tagged.base_revision, tagged.adapter_revision) == (_commit(0), _commit(6))
    assert main.adapter_hash != tagged.adapter_hash and main.base_hash == tagged.base_hash


def test_an_export_keeps_the_revisions(hub: Path, tmp_path: Path) -> None:
    spec = _spec(str(export("someone/adapter", tmp_path / "exported", revision="v1.2")), None)
    assert (spec.base_revision, spec.adapter_revision) == (_commit(0), _commit(6))
    assert spec == _spec("someone/adapter", "v1.2")


def test_equal_weights_of_other_origins_are_one_space(hub: Path, tmp_path: Path) -> None:
    local = shutil.copytree(hub / "models--someone--base" / "snapshots" / _commit(1), tmp_path / "local")
    spec = _spec(str(local), None)
    assert spec.base_revision is None and spec.fingerprint == _spec("someone/base", "v1.2").fingerprint


@pytest.mark.parametrize("name", ["smollm2-135m", "folder"])
def test_a_revision_of_anything_but_a_hub_id_is_refused(tmp_path: Path, name: str) -> None:
    chosen = str(tiny.folder(tmp_path / "base")) if name == "folder" else name
    for load in (_spec, checkpoint_state, load_tokenizer):
        with pytest.raises(InputError, match=r"revision 'v1' is for Hub ids, but .* is a (bundled model|local folder)"):
            load(chosen, "v1")


@pytest.mark.parametrize("revision", ["", 3])
def test_a_revision_must_be_a_name(revision: Any) -> None:
    with pytest.raises(InputError, match="revision must be a branch, tag or commit"):
        _spec("someone/base", revision)


def test_training_records_the_commit_of_its_base(hub: Path, tmp_path: Path) -> None:
    """PEFT and `load_checkpoint` then load the base that the adapter was trained on, whatever main has become."""
    base = load_checkpoint("someone/base", dtype=torch.float32, device="cpu", revision="v1.2")
    model = get_peft_model(base.model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    (tmp_path / "trained").mkdir()
    save_adapter(tmp_path / "trained", model, "someone/base", revision=base.spec.base_revision)
    spec = _spec(str(tmp_path / "trained"), None)
    assert (spec.base_hash, spec.base_revision) == (base.spec.base_hash, _commit(1))


def test_a_folder_has_only_one_revision(tmp_path: Path) -> None:
    adapter = tiny.adapter(tmp_path / "adapter", tiny.folder(tmp_path / "base"))
    before = _base_hash(adapter)
    _set_revision(adapter, "main")
    assert _base_hash(adapter) == before


@pytest.mark.parametrize("revision", [5, "", ["v1"]])
def test_an_invalid_revision_is_reported(tmp_path: Path, revision: object) -> None:
    adapter = tiny.adapter(tmp_path / "adapter", tiny.folder(tmp_path / "base"))
    _set_revision(adapter, revision)
    with pytest.raises(CheckpointError, match=r"adapter_config.json: revision must be"):
        _base_hash(adapter)
