"""VllmBackend around an engine that is not there: what a start or an answer that goes wrong becomes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import BaseModel, field_validator

from gircse_rag.backend import Refinement, Request
from gircse_rag.backends.vllm import in_process as module
from gircse_rag.backends.vllm.in_process import VllmBackend
from gircse_rag.errors import GircseError
from gircse_rag.spec import EmbeddingSpec

SPEC = EmbeddingSpec(base_model="stub", base_hash="0", tokenizer_hash="0", dimension=4)


class Config(BaseModel):
    dtype: str = "auto"

    @field_validator("dtype")
    @classmethod
    def known(cls, value: str) -> str:
        raise ValueError(f"Unknown dtype: {value!r}")


def started(monkeypatch: pytest.MonkeyPatch, llm: Callable[..., Any]) -> VllmBackend:
    """A backend whose `vllm.LLM` is `llm`."""
    vllm = SimpleNamespace(LLM=llm, PoolingParams=dict, current_platform=SimpleNamespace(is_cpu=lambda: True))
    monkeypatch.setattr(module, "require", lambda name, extra: vllm)
    return VllmBackend(Path("nowhere"), SPEC, max_model_len=64)


@pytest.mark.parametrize(
    ("fail", "said"),
    [
        (lambda: Config(dtype="float8"), "vLLM could not start: dtype: Value error, Unknown dtype: 'float8'"),
        (lambda: (_ for _ in ()).throw(RuntimeError("no GPU\nand much more")), "vLLM could not start: no GPU"),
        (lambda: (_ for _ in ()).throw(RuntimeError()), "vLLM could not start: RuntimeError"),
    ],
)
def test_why_it_could_not_start(fail: Callable[[], Any], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GircseError) as caught:
        started(monkeypatch, lambda **options: next(iter(fail())))
    assert str(caught.value) == said


def test_what_an_interrupted_call_left_is_not_taken_for_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[Any] = []

    def encode(prompts: list[dict[str, list[int]]], **_: Any) -> list[Any]:
        left.extend(prompts)
        answers = [
            SimpleNamespace(outputs=SimpleNamespace(data=torch.eye(4)[one["prompt_token_ids"][0]])) for one in left
        ]
        left.clear()
        return answers

    llm = SimpleNamespace(encode=encode, model_config=SimpleNamespace(max_model_len=64))
    inside = started(monkeypatch, lambda **options: llm)
    left.append({"prompt_token_ids": [3]})  # as an interrupt inside encode leaves it
    with pytest.raises(GircseError, match="interrupted; embed these texts again"):
        list(inside.refine([Request((1, 2), 2)]))
    ((_, outcome),) = inside.refine([Request((1, 2), 2)])
    assert isinstance(outcome, Refinement)
    assert np.array_equal(outcome.vector, np.eye(4)[1])
