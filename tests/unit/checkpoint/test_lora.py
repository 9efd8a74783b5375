from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from torch import nn

from gircse_rag.checkpoint import load_hf, lora
from gircse_rag.errors import CheckpointError
from tests import tiny


def _set_targets(adapter: Path, targets: object) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "target_modules": targets}))


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return tiny.adapter(tmp_path / "adapter", tiny.folder(tmp_path / "base"))


@pytest.mark.parametrize(
    "pattern",
    [
        r"(.+)+[A-Z]",  # these four never end with the standard library's `re`
        r"([a-z_.0-9]+)*[A-Z]",
        r"(.*)*(.*)*(.*)*[A-Z]",
        r"(\w*\.?)*\W\W",
        r"(.+?)+\1{1,}[A-Z]",  # these two never end with `regex`
        r"(?:(.+?)(.*?)\1*\2*)+[A-Z]",
    ],
)
def test_a_pattern_that_backtracks_endlessly_is_refused_in_time(
    adapter: Path, pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lora, "MATCHING_SECONDS", 0.1)
    _set_targets(adapter, pattern)
    start = time.monotonic()
    with pytest.raises(CheckpointError, match=str(adapter)):
        load_hf(str(adapter))
    assert time.monotonic() - start < 30


def test_the_time_limit_covers_all_layers_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora, "MATCHING_SECONDS", -1.0)
    with pytest.raises(TimeoutError):
        lora._find_targets(tiny.model(), r".*\.q_proj")


@pytest.mark.parametrize("pattern", ["(" * 5000 + ")" * 5000, "[", "a{1,99999999999999}", "(?P<x>a"])
def test_a_pattern_that_does_not_compile_is_reported(adapter: Path, pattern: str) -> None:
    _set_targets(adapter, pattern)
    with pytest.raises(CheckpointError, match="its config is damaged"):
        load_hf(str(adapter))


def test_a_scale_beyond_floats_is_reported(adapter: Path) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "lora_alpha": 10**400}))
    with pytest.raises(CheckpointError, match="its config is damaged"):
        load_hf(str(adapter))


@pytest.mark.parametrize(
    "pattern",
    [
        r".*\.(q|k|v|o|gate|up|down)_proj",
        r"model\.layers\.[01]\.(?:self_attn|mlp)\.\w+",
        # as Unsloth writes it
        r"(?:.*?(?:language|text).*?(?:self_attn|mlp).*?(?:q_proj|v_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\."
        r"(?:self_attn|mlp)\.(?:(?:q_proj|v_proj)))",
    ],
)
def test_patterns_match_as_in_peft(pattern: str) -> None:
    model = tiny.model()
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and "lm_head" not in name]
    expected = [name for name in layers if re.fullmatch(pattern, name)]
    assert expected and lora._find_targets(model, pattern) == expected
