"""`gircse export` writes a complete folder in the same vector space, and changed weights are detected."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import processors
from transformers import AutoTokenizer

from gircse_rag import Embedder
from gircse_rag.backends.vllm.export import export, is_exported
from gircse_rag.checkpoint import load_tokenizer
from gircse_rag.errors import CheckpointError, InputError, MissingExtraError
from gircse_rag.install_hint import install_command
from tests import tiny

TEXTS = ["a text", '"Quoted" it is', "-> the way of the world"]


def load(name: Path) -> Embedder:
    return Embedder.from_pretrained(str(name), backend="reference", dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    made = tiny.adapter(folder / "adapter", tiny.folder(folder / "base"))
    (made / "gircse.json").write_text(json.dumps({"document_steps": 3, "temperature": 0.5, "max_length": 100}))
    return made


def test_an_export_has_the_same_fingerprint_and_vectors(adapter: Path, tmp_path: Path) -> None:
    before, after = load(adapter), load(export(str(adapter), tmp_path / "new" / "exported"))
    assert after.fingerprint == before.fingerprint
    assert after.spec.to_dict() == before.spec.to_dict()
    np.testing.assert_allclose(after.embed_queries(TEXTS), before.embed_queries(TEXTS), atol=1e-6)
    assert list((tmp_path / "new").iterdir()) == [tmp_path / "new" / "exported"]  # no temporary folder is left


def test_config_and_weights_are_what_vllm_reads(adapter: Path, tmp_path: Path) -> None:
    folder = export(str(adapter), tmp_path / "exported", dtype=torch.bfloat16)
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["GircseLlamaForCausalLM"]
    assert config["gircse"]["spec"]["temperature"] == 0.5
    assert is_exported(folder) and not is_exported(adapter) and not is_exported(tmp_path / "nowhere")
    assert {weight.dtype for weight in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}
    assert load(folder).fingerprint == load(adapter).fingerprint  # the dtype does not change the space


def test_an_export_of_an_export_is_the_same_model(adapter: Path, tmp_path: Path) -> None:
    once = export(str(adapter), tmp_path / "once")
    assert load(export(str(once), tmp_path / "twice")).spec == load(once).spec


def test_changed_weights_are_detected(adapter: Path, tmp_path: Path) -> None:
    folder = export(str(adapter), tmp_path / "exported")
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"differ from those that `gircse export` wrote.*export the model again"):
        load(folder)


def test_a_damaged_config_entry_is_reported(adapter: Path, tmp_path: Path) -> None:
    folder = export(str(adapter), tmp_path / "exported")
    config = json.loads((folder / "config.json").read_text())
    del config["gircse"]["spec"]["base_hash"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="'gircse' is damaged; export the model again"):
        load(folder)


def test_a_folder_that_is_not_empty_is_not_overwritten(adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(InputError, match="is not empty; export to a new folder"):
        export(str(adapter), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    (tmp_path / "empty").mkdir()
    assert is_exported(export(str(adapter), tmp_path / "empty"))


@pytest.mark.parametrize("sequence", [False, True])
def test_the_exported_tokenizer_adds_no_special_token(sequence: bool, tmp_path: Path) -> None:
    plain = tiny.folder(tmp_path / "plain")
    tokenizer = tiny.tokenizer()
    adds = processors.TemplateProcessing(single="<|end|> $A", special_tokens=[("<|end|>", 0)])
    tokenizer.backend_tokenizer.post_processor = (
        processors.Sequence([processors.ByteLevel(trim_offsets=False), adds]) if sequence else adds
    )
    tokenizer.save_pretrained(plain)
    before = AutoTokenizer.from_pretrained(plain)
    after = AutoTokenizer.from_pretrained(export(str(plain), tmp_path / "exported"))
    assert before("it's").input_ids != after("it's").input_ids == before("it's", add_special_tokens=False).input_ids
    assert load(tmp_path / "exported").fingerprint == load(plain).fingerprint


def test_load_tokenizer_returns_spec_fields_without_weights(adapter: Path, tmp_path: Path) -> None:
    exported, spec = export(str(adapter), tmp_path / "exported"), load(adapter).spec
    for name in (adapter, exported):
        _, known = load_tokenizer(str(name))
        assert known.items() <= spec.to_dict().items()
        assert known["adapter_hash"] == spec.adapter_hash is not None
    _, plain = load_tokenizer(str(adapter.parent / "base"))
    assert plain["adapter_hash"] is None


def test_url_needs_vllm_and_vllm_takes_no_device(adapter: Path) -> None:
    with pytest.raises(InputError, match="url is for backend='vllm'"):
        Embedder.from_pretrained(str(adapter), url="http://localhost:8000")
    with pytest.raises(InputError, match="chooses its device"):
        Embedder.from_pretrained(str(adapter), backend="vllm", device="cpu")


def test_without_vllm_the_error_names_the_extra(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "vllm", None)
    with pytest.raises(MissingExtraError, match=re.escape(install_command("vllm"))):
        Embedder.from_pretrained(str(adapter), backend="vllm")
