from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch

from gircse_rag.checkpoint import load_checkpoint
from gircse_rag.errors import CheckpointError
from tests import tiny


def _set_revision(adapter: Path, revision: object) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "revision": revision}))


def _base_hash(adapter: Path) -> str:
    return load_checkpoint(str(adapter), dtype=torch.float32, device="cpu").spec.base_hash


def test_an_adapter_gets_the_revision_that_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(hub))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    root = hub / "models--someone--base"
    (root / "refs").mkdir(parents=True)
    for seed, revision in enumerate(("main", "v1.2")):
        commit = str(seed) * 40
        (root / "refs" / revision).write_text(commit)
        tiny.folder(root / "snapshots" / commit, seed=seed)
    adapter = tiny.adapter(tmp_path / "adapter", "someone/base")
    newest = _base_hash(adapter)
    _set_revision(adapter, "v1.2")
    tagged = _base_hash(adapter)
    _set_revision(adapter, "0" * 40)
    assert newest == _base_hash(adapter) != tagged
    _set_revision(adapter, "v2")
    with pytest.raises(CheckpointError, match=r"could not get 'someone/base' \(revision 'v2'\)"):
        _base_hash(adapter)


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
