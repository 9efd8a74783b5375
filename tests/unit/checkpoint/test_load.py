from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel
from transformers.utils import logging

from gircse_rag.checkpoint import checkpoint_state, load_checkpoint, load_hf, load_tokenizer
from gircse_rag.errors import CheckpointError
from gircse_rag.spec import EmbeddingSpec
from tests import tiny


def _spec(folder: Path | str) -> EmbeddingSpec:
    return load_checkpoint(str(folder), dtype=torch.float32, device="cpu").spec


def _edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny.folder(tmp_path / "base")


@pytest.fixture
def adapter(tmp_path: Path, base: Path) -> Path:
    return tiny.adapter(tmp_path / "adapter", base)


def test_loading_prints_nothing(tiny_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    previous = logging.set_tqdm_hook(None)
    load_hf(str(tiny_folder))
    assert capfd.readouterr() == ("", "")
    assert logging.set_tqdm_hook(previous) is None, "the bars of the caller's own models stay"


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_a_merged_model_loads_as_it_was_saved(tmp_path: Path, family: str, tied: bool) -> None:
    folder = tiny.folder(tmp_path / family, family, tied=tied)
    checkpoint = load_checkpoint(str(folder), dtype=torch.float32, device="cpu")
    saved = tiny.model(family, tied=tied).state_dict()
    assert checkpoint.model.state_dict().keys() == saved.keys()
    assert all(torch.equal(value, saved[name]) for name, value in checkpoint.model.state_dict().items())
    assert not checkpoint.model.training
    assert checkpoint.spec.dimension == 32
    assert checkpoint.spec.adapter is None
    assert checkpoint.tokenizer("it's")["input_ids"] == tiny.tokenizer()("it's")["input_ids"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_only_weights_are_rounded(base: Path, dtype: torch.dtype) -> None:
    """Rotary frequencies stay float32 and equal transformers', whatever the dtype of the weights."""
    model = load_checkpoint(str(base), dtype=dtype, device="cpu").model
    theirs = dict(AutoModelForCausalLM.from_pretrained(base, dtype=dtype).named_buffers())
    ours = dict(model.named_buffers())
    assert ours.keys() == theirs.keys() and any(name.endswith("inv_freq") for name in ours)
    assert all(value.dtype == torch.float32 and torch.equal(value, theirs[name]) for name, value in ours.items())
    assert {value.dtype for value in model.parameters()} == {dtype}
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_an_adapter_is_merged_into_the_base_its_config_names(tmp_path: Path, family: str) -> None:
    base = tiny.folder(tmp_path / "base", family)
    adapter = tiny.adapter(tmp_path / "adapter", base, family=family)
    model, _ = load_hf(str(adapter))
    ids = torch.tensor([[5, 6, 7, 8]])
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, theirs(ids).logits, atol=2e-5, rtol=1e-5)
        assert (model(ids).logits - load_hf(str(base))[0](ids).logits).abs().max() > 0.1
    spec = _spec(adapter)
    assert (spec.base_model, spec.adapter) == (str(base), str(adapter))
    assert spec.base_hash == _spec(base).base_hash
    assert spec.fingerprint != _spec(base).fingerprint


def test_the_fingerprint_ignores_location_and_sharding_but_not_weights(tmp_path: Path, base: Path) -> None:
    moved = Path(shutil.copytree(base, tmp_path / "elsewhere"))
    sharded = tmp_path / "sharded"
    tiny.model().save_pretrained(sharded, max_shard_size="20kB")
    tiny.tokenizer().save_pretrained(sharded)
    assert len(list(sharded.glob("*.safetensors"))) > 1
    assert _spec(base).fingerprint == _spec(moved).fingerprint == _spec(sharded).fingerprint
    assert _spec(tiny.folder(tmp_path / "other", seed=2)).fingerprint != _spec(base).fingerprint


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("adapter/adapter_config.json", {"lora_alpha": 32}),
        ("adapter/adapter_config.json", {"use_rslora": True}),
        ("base/config.json", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
        ("base/config.json", {"rms_norm_eps": 1e-3}),
    ],
)
def test_config_changes_that_affect_vectors_change_the_fingerprint(
    tmp_path: Path, adapter: Path, file: str, change: dict[str, object]
) -> None:
    before = _spec(adapter).fingerprint
    _edit_json(tmp_path / file, **change)
    assert _spec(adapter).fingerprint != before


def test_dtype_converts_and_is_recorded(base: Path) -> None:
    checkpoint = load_checkpoint(str(base), dtype=torch.bfloat16, device="cpu")
    assert {weight.dtype for weight in checkpoint.model.parameters()} == {torch.bfloat16}
    assert checkpoint.spec.dtype == "bfloat16"
    assert checkpoint.spec.fingerprint == _spec(base).fingerprint


def test_the_authors_format_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(hub))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    def snapshot(repository: str) -> Path:
        root = hub / f"models--{repository.replace('/', '--')}"
        (root / "refs").mkdir(parents=True)
        (root / "refs" / "main").write_text("0" * 40)
        return root / "snapshots" / ("0" * 40)

    tiny.folder(snapshot("Qwen/Qwen2.5-7B"), "qwen2", tied=False)
    tiny.adapter(snapshot("Roytsai27/GIRCSE-QWEN7B"), "Qwen/Qwen2.5-7B", family="qwen2", tied=False)
    spec = _spec("Roytsai27/GIRCSE-QWEN7B")
    assert (spec.base_model, spec.adapter) == ("Qwen/Qwen2.5-7B", "Roytsai27/GIRCSE-QWEN7B")
    assert (spec.temperature, spec.document_steps, spec.max_length, spec.suffix) == (1.0, 5, 512, "")
    with pytest.raises(CheckpointError, match=r"could not get 'nobody/nothing' from the Hugging Face Hub"):
        _spec("nobody/nothing")


def test_gircse_json_overrides_spec_fields(base: Path) -> None:
    (base / "gircse.json").write_text(json.dumps({"document_steps": 3, "suffix": "<|end|>", "temperature": 0.5}))
    spec = _spec(base)
    assert (spec.document_steps, spec.suffix, spec.temperature) == (3, "<|end|>", 0.5)
    (base / "gircse.json").write_text('{"colour": 1}')
    with pytest.raises(CheckpointError, match="colour"):
        _spec(base)
    for bad in ('{"temperature": "hot"}', '{"max_length": "512"}', '{"suffix": 5}', '{"document_steps": 0}'):
        (base / "gircse.json").write_text(bad)
        with pytest.raises(CheckpointError, match=r"gircse.json: .* must be"):
            _spec(base)
    (base / "gircse.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"could not read .*gircse.json"):
        _spec(base)


@pytest.mark.parametrize("damage", ["renamed", "missing", "extra", "another model"])
def test_an_adapter_that_does_not_fit_is_an_error(tmp_path: Path, base: Path, adapter: Path, damage: str) -> None:
    file = adapter / "adapter_model.safetensors"
    weights = load_file(file)
    key = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"
    if damage == "renamed":
        weights = {name.replace("base_model.model.model.", "base_model.model."): w for name, w in weights.items()}
    elif damage == "missing":
        del weights[key]
    elif damage == "extra":
        weights[key.replace("layers.1", "layers.7")] = torch.zeros_like(weights[key])
    else:
        weights = {name: torch.zeros(w.shape[0] * 2, w.shape[1] * 2) for name, w in weights.items()}
    save_file(weights, file)
    with pytest.raises(CheckpointError, match="does not fit its base model"):
        _spec(adapter)


@pytest.mark.parametrize(
    "change", [{"use_dora": True}, {"rank_pattern": {"q_proj": 8}}, {"bias": "all"}, {"init_lora_weights": "pissa"}]
)
def test_adapters_beyond_plain_lora_are_refused(adapter: Path, change: dict[str, object]) -> None:
    _edit_json(adapter / "adapter_config.json", **change)
    with pytest.raises(CheckpointError, match="not plain LoRA; merge it with PEFT"):
        _spec(adapter)


@pytest.mark.parametrize(
    "targets", ["all-linear", r".*\.(q|k|v|o|gate|up|down)_proj", list(reversed(tiny.PROJECTIONS))]
)
def test_every_form_of_target_modules_is_accepted(adapter: Path, targets: object) -> None:
    expected = load_hf(str(adapter))[0].state_dict()
    _edit_json(adapter / "adapter_config.json", target_modules=targets)
    assert all(torch.equal(weight, expected[name]) for name, weight in load_hf(str(adapter))[0].state_dict().items())


@pytest.mark.parametrize("option", ["plain", "rslora"])
def test_merging_equals_peft_up_to_rounding(tmp_path: Path, base: Path, adapter: Path, option: str) -> None:
    _edit_json(adapter / "adapter_config.json", use_rslora=option == "rslora")
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).merge_and_unload()
    ours = load_hf(str(adapter))[0].state_dict()
    for name, weight in theirs.state_dict().items():
        torch.testing.assert_close(ours[name], weight, atol=1e-6, rtol=1e-6)


def test_adapters_on_the_head_are_refused(adapter: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    save_file({**load_file(file), "base_model.model.lm_head.lora_A.weight": torch.zeros(16, 32)}, file)
    with pytest.raises(CheckpointError, match="lm_head"):
        _spec(adapter)


def test_other_adapters_are_refused(adapter: Path) -> None:
    _edit_json(adapter / "adapter_config.json", peft_type="IA3")
    with pytest.raises(CheckpointError, match="only LoRA"):
        _spec(adapter)


@pytest.mark.parametrize("change", [{"peft_type": "NOTHING"}, {"r": "x"}])
def test_invalid_adapter_configs_are_reported(adapter: Path, change: dict[str, object]) -> None:
    _edit_json(adapter / "adapter_config.json", **change)
    with pytest.raises(CheckpointError, match=str(adapter)):
        _spec(adapter)


@pytest.mark.parametrize("damage", ["truncated", "gone", "no base named"])
def test_damaged_adapters_are_reported(adapter: Path, damage: str) -> None:
    file = adapter / "adapter_model.safetensors"
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:1000])
    elif damage == "gone":
        file.unlink()
    else:
        _edit_json(adapter / "adapter_config.json", base_model_name_or_path=None)
    for load in (_spec, load_tokenizer):
        with pytest.raises(CheckpointError, match=str(adapter)):
            load(str(adapter))


@pytest.mark.parametrize("change", [{"hidden_size": "576"}, {"num_attention_heads": 0}, {"num_hidden_layers": None}])
def test_config_values_of_a_wrong_type_are_reported(base: Path, change: dict[str, object]) -> None:
    _edit_json(base / "config.json", **change)
    with pytest.raises(CheckpointError, match=str(base)):
        _spec(base)


def test_a_damaged_export_is_reported_before_loading_weights(base: Path) -> None:
    _edit_json(base / "config.json", gircse={"spec": {}})
    with pytest.raises(CheckpointError, match="'gircse' is damaged; export the model again"):
        load_tokenizer(str(base))


def test_the_state_of_a_model_changes_with_its_files(base: Path, adapter: Path) -> None:
    before = checkpoint_state(str(adapter))
    assert before == checkpoint_state(str(adapter)) != checkpoint_state(str(base))
    for path in (base / "config.json", adapter / "gircse.json", base / "model.safetensors"):
        if path.suffix == ".json":
            path.write_text('{"document_steps": 3}')
        else:
            os.utime(path, ns=(0, 0))
        assert checkpoint_state(str(adapter)) != before
        before = checkpoint_state(str(adapter))


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json"])
@pytest.mark.parametrize("damage", ["truncated", "gone"])
def test_damaged_models_are_reported(base: Path, file: str, damage: str) -> None:
    path = base / file
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:200])
    else:
        path.unlink()
    with pytest.raises(CheckpointError, match=str(base)):
        _spec(base)


def test_a_model_without_all_its_weights_is_refused(base: Path) -> None:
    weights = load_file(base / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 weight.*model.layers.0.mlp.up_proj.weight"):
        _spec(base)


def test_a_model_with_unexpected_weights_is_refused(base: Path, tmp_path: Path) -> None:
    biased = tiny.folder(tmp_path / "qwen", "qwen2")
    _edit_json(biased / "config.json", model_type="llama", architectures=["LlamaForCausalLM"])
    with pytest.raises(CheckpointError, match=r"no place for, first model.layers.0.self_attn.k_proj.bias"):
        _spec(biased)


def test_a_tokenizer_of_another_model_is_refused(base: Path) -> None:
    larger = tiny.tokenizer()
    larger.add_tokens([f"extra{i}" for i in range(500)])
    larger.save_pretrained(base)
    with pytest.raises(CheckpointError, match=r"the tokenizer has \d+ tokens, but the model embeds 400"):
        _spec(base)


def test_a_base_with_an_adapter_is_refused(base: Path, adapter: Path) -> None:
    shutil.copy(adapter / "adapter_config.json", base)
    with pytest.raises(CheckpointError, match="holds an adapter too"):
        _spec(adapter)


def test_nan_weights_are_reported_with_their_name(base: Path) -> None:
    weights = load_file(base / "model.safetensors")
    weights["model.layers.1.self_attn.k_proj.weight"][3, 3] = float("nan")
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"NaN.*model.layers.1.self_attn.k_proj.weight"):
        _spec(base)


def test_pickles_are_never_opened(base: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"

    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (marker,))

    (base / "model.safetensors").unlink()
    (base / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(CheckpointError, match="only safetensors"):
        _spec(base)
    assert not marker.exists()


def test_remote_code_is_never_run(base: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    (base / "evil.py").write_text(f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n")
    _edit_json(
        base / "config.json",
        model_type="evil",
        auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},
    )
    with pytest.raises(CheckpointError):
        _spec(base)
    assert not marker.exists()


def test_other_families_are_refused(tmp_path: Path) -> None:
    GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=400)).save_pretrained(tmp_path / "gpt2")
    tiny.tokenizer().save_pretrained(tmp_path / "gpt2")
    with pytest.raises(CheckpointError, match=r"gpt2 model; supported families: llama, mistral, qwen2, qwen3"):
        _spec(tmp_path / "gpt2")


@pytest.mark.parametrize(
    ("family", "reason"),
    [("gemma3_text", "sqrt"), ("qwen3_moe", "experts"), ("mixtral", "experts"), ("phi3", "one weight"), (["a"], "$")],
)
def test_a_known_family_is_refused_with_the_reason(base: Path, family: object, reason: str) -> None:
    _edit_json(base / "config.json", model_type=family)
    with pytest.raises(CheckpointError, match=rf"supported families: llama, mistral, qwen2, qwen3.*{reason}"):
        _spec(base)


def test_a_window_too_small_for_the_spec_is_refused(base: Path) -> None:
    _edit_json(base / "config.json", max_position_embeddings=128)
    with pytest.raises(CheckpointError, match="window of 128"):
        _spec(base)
    (base / "gircse.json").write_text('{"max_length": 100}')
    assert _spec(base).max_length == 100


@pytest.mark.parametrize("name", ["no-such-model", "./no/such/folder", "/no/such", "a/b/c"])
def test_unknown_names_list_the_bundled_models(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"no model.*smollm2-135m"):
        _spec(name)


@pytest.mark.parametrize("name", ["~nobody-here/model", "x" * 5000, "a\0b"])
def test_names_that_are_no_valid_path_are_refused(name: str) -> None:
    with pytest.raises(CheckpointError, match="no model"):
        _spec(name)


def test_a_folder_without_a_model_lists_its_files(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(CheckpointError, match=r"neither config.json.*notes.txt"):
        _spec(tmp_path)
