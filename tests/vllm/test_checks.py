"""Refused at start: untested vLLM versions, and settings that would give wrong vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gircse_rag.backends.vllm.plugin import checks
from gircse_rag.errors import CheckpointError, GircseError
from gircse_rag.selfcheck.finding import run_check
from gircse_rag.selfcheck.vllm import check_vllm
from tests import tiny
from tests.vllm.engines import engine


def test_the_installed_vllm_passes() -> None:
    checks.check_vllm()


def test_the_self_check_names_the_runners() -> None:
    """`gircse doctor --deep` in an environment that has vLLM."""
    found = run_check("vllm", check_vllm)
    assert (found.state, found.figures["V1 runner"], found.figures["V2 runner"]) == ("passed", 1, 1), found.found


def test_an_untested_series_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "version", lambda name: "0.33.1")
    with pytest.raises(GircseError, match=r"this is vLLM 0\.33\.1; gircse-rag was tested with vLLM 0\.32\.0"):
        checks.check_vllm()


@pytest.mark.parametrize("path", sorted(checks.PRIVATE_FUNCTIONS))
def test_a_private_function_with_another_signature_is_named(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, _, name = path.rpartition(".")
    monkeypatch.setattr(checks._resolve(owner), name, lambda self, something, quite, different: None)
    with pytest.raises(GircseError, match=rf"{name} takes .*different.*tested with vLLM 0\.32\.0"):
        checks.check_vllm()


def test_a_missing_private_function_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.core.sched.scheduler import Scheduler

    monkeypatch.delattr(Scheduler, "_reserve_prefill_lookahead")
    with pytest.raises(GircseError, match=r"_reserve_prefill_lookahead takes None.*tested with vLLM"):
        checks.check_vllm()


def test_a_changed_prefix_cache_result_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.core.sched.scheduler import Scheduler

    def three(self: Any, request: Any) -> tuple[list[Any], int, bool]:
        return [], 0, False

    three.__annotations__["return"] = tuple[list[Any], int, bool]
    monkeypatch.setattr(Scheduler, "_get_local_prefix_cache_hit", three)
    with pytest.raises(GircseError, match=r"_get_local_prefix_cache_hit returns .*, not 4 values; .*tested with vLLM"):
        checks.check_vllm()


@pytest.mark.parametrize("path", sorted(checks.PRIVATE_ATTRIBUTES))
def test_a_missing_private_attribute_is_named(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, _, name = path.rpartition(".")
    monkeypatch.setattr(checks._resolve(owner), name, lambda self, *args, **kwargs: None)
    with pytest.raises(GircseError, match=rf"does not set {checks.PRIVATE_ATTRIBUTES[path][0]}; .*tested with vLLM"):
        checks.check_vllm()


def test_the_engine_checks_before_it_loads_weights(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(checks.PRIVATE_FUNCTIONS, checks.HIT, ("self", "something", "else"))
    (llama / "model.safetensors").rename(llama / "moved")
    try:
        with pytest.raises(Exception, match=r"_get_local_prefix_cache_hit takes .*tested with vLLM"), engine(llama):
            pass
    finally:
        (llama / "moved").rename(llama / "model.safetensors")


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"enable_lora": True}, "merge the adapter with `gircse export`"),
        ({"scheduling_policy": "priority"}, "use the policy fcfs"),
        ({"enable_chunked_prefill": False, "max_num_batched_tokens": 512}, "chunked prefill must be on"),
        ({"pipeline_parallel_size": 2}, "use tensor parallelism"),
    ],
)
def test_unsupported_settings_are_refused(llama: Path, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(Exception, match=reason), engine(llama, **options):
        pass


def test_a_sliding_window_shorter_than_the_length_is_refused(tmp_path: Path) -> None:
    import json

    from tests.vllm.engines import tiny_folder

    folder = tiny_folder(tmp_path, "mistral")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "sliding_window": 64}))
    with pytest.raises(Exception, match="sliding window of 64 positions is shorter"), engine(folder):
        pass


def test_a_folder_that_was_not_exported_is_refused(tmp_path: Path) -> None:
    plain = tiny.folder(tmp_path / "plain", head_dim=32)
    with (
        pytest.raises(Exception, match="write the folder with `gircse export`"),
        engine(plain, hf_overrides={"architectures": ["GircseLlamaForCausalLM"]}),
    ):
        pass


def test_adapters_on_the_head_or_the_embeddings_are_not_merged(tmp_path: Path) -> None:
    """vLLM refuses such an adapter at run time (`enable_lora`, above), and export refuses it too."""
    from peft import LoraConfig, get_peft_model

    from gircse_rag.backends.vllm.export import export

    base = tiny.folder(tmp_path / "base", head_dim=32)
    for target in ("lm_head", "embed_tokens"):
        adapted = get_peft_model(
            tiny.model(head_dim=32, tied=False),
            LoraConfig(r=4, target_modules=["q_proj", target], task_type="CAUSAL_LM"),
        )
        adapted.peft_config["default"].base_model_name_or_path = str(base)
        adapted.save_pretrained(tmp_path / target, save_embedding_layers=False)
        with pytest.raises(CheckpointError, match="soft tokens need the base model's own head"):
            export(str(tmp_path / target), tmp_path / "never")
        assert not (tmp_path / "never").exists()
