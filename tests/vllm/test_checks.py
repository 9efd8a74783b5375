"""What is refused at start: another vLLM, and ways to run it that would give wrong vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gircse_rag.backends.vllm.plugin import checks
from gircse_rag.errors import CheckpointError, GircseError
from tests import tiny
from tests.vllm.engines import engine


def test_this_vllm_is_the_one_we_know() -> None:
    checks.check_vllm()


def test_another_series_is_refused_with_the_tested_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "version", lambda name: "0.33.1")
    with pytest.raises(GircseError, match=r"this is vLLM 0\.33\.1; gircse-rag was tested with vLLM 0\.32\.0"):
        checks.check_vllm()


@pytest.mark.parametrize("path", sorted(checks.PRIVATE_FUNCTIONS))
def test_a_private_function_of_another_shape_is_named(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, _, name = path.rpartition(".")
    monkeypatch.setattr(checks._resolve(owner), name, lambda self, something, quite, different: None)
    with pytest.raises(GircseError, match=rf"{name} takes .*different.*tested with vLLM 0\.32\.0"):
        checks.check_vllm()


def test_a_private_function_that_is_gone_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.core.sched.scheduler import Scheduler

    monkeypatch.delattr(Scheduler, "_reserve_prefill_lookahead")
    with pytest.raises(GircseError, match=r"_reserve_prefill_lookahead takes None.*tested with vLLM"):
        checks.check_vllm()


def test_another_result_of_the_prefix_cache_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.core.sched.scheduler import Scheduler

    def three(self: Any, request: Any) -> tuple[list[Any], int, bool]:
        return [], 0, False

    three.__annotations__["return"] = tuple[list[Any], int, bool]
    monkeypatch.setattr(Scheduler, "_get_local_prefix_cache_hit", three)
    with pytest.raises(GircseError, match=r"_get_local_prefix_cache_hit returns .*, not 4 things; .*tested with vLLM"):
        checks.check_vllm()


@pytest.mark.parametrize("path", sorted(checks.PRIVATE_ATTRIBUTES))
def test_an_attribute_that_is_set_no_more_is_named(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, _, name = path.rpartition(".")
    monkeypatch.setattr(checks._resolve(owner), name, lambda self, *args, **kwargs: None)
    with pytest.raises(GircseError, match=rf"sets no {checks.PRIVATE_ATTRIBUTES[path][0]}; .*tested with vLLM"):
        checks.check_vllm()


def test_the_engine_asks_before_it_loads_a_weight(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_ways_to_run_that_would_be_wrong(llama: Path, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(Exception, match=reason), engine(llama, **options):
        pass


def test_a_sliding_window_shorter_than_the_length(tmp_path: Path) -> None:
    import json

    from tests.vllm.engines import tiny_folder

    folder = tiny_folder(tmp_path, "mistral")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "sliding_window": 64}))
    with pytest.raises(Exception, match="sliding window of 64 positions is shorter"), engine(folder):
        pass


def test_a_folder_that_was_not_exported(tmp_path: Path) -> None:
    plain = tiny.folder(tmp_path / "plain", head_dim=32)
    with (
        pytest.raises(Exception, match="write the folder with `gircse export`"),
        engine(plain, hf_overrides={"architectures": ["GircseLlamaForCausalLM"]}),
    ):
        pass


def test_adapters_on_the_head_or_the_embeddings_are_not_merged(tmp_path: Path) -> None:
    """Such an adapter can get into vLLM neither at run time (`enable_lora`, above) nor through an export."""
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
        with pytest.raises(CheckpointError, match="soft tokens need the head and the embeddings"):
            export(str(tmp_path / target), tmp_path / "never")
        assert not (tmp_path / "never").exists()
