"""VllmBackend around a fake vLLM: failed starts and interrupted calls."""

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
    def reject(cls, value: str) -> str:
        raise ValueError(f"Unknown dtype: {value!r}")


def start_backend(monkeypatch: pytest.MonkeyPatch, llm: Callable[..., Any]) -> VllmBackend:
    """A backend whose `vllm.LLM` is `llm`."""
    vllm = SimpleNamespace(LLM=llm, PoolingParams=dict, current_platform=SimpleNamespace(is_cpu=lambda: True))
    monkeypatch.setattr(module, "require", lambda name, extra: vllm)
    return VllmBackend(Path("nowhere"), SPEC, max_model_len=64)


@pytest.mark.parametrize(
    ("fail", "message"),
    [
        (lambda: Config(dtype="float8"), "vLLM could not start: dtype: Value error, Unknown dtype: 'float8'"),
        (lambda: (_ for _ in ()).throw(RuntimeError("no GPU\nand much more")), "vLLM could not start: no GPU"),
        (lambda: (_ for _ in ()).throw(RuntimeError()), "vLLM could not start: RuntimeError"),
    ],
)
def test_a_failed_start_says_why(fail: Callable[[], Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GircseError) as caught:
        start_backend(monkeypatch, lambda **options: next(iter(fail())))
    assert str(caught.value) == message


def test_leftovers_of_an_interrupted_call_are_not_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    queue: list[Any] = []

    def encode(prompts: list[dict[str, list[int]]], **_: Any) -> list[Any]:
        queue.extend(prompts)
        answers = [
            SimpleNamespace(outputs=SimpleNamespace(data=torch.eye(4)[one["prompt_token_ids"][0]])) for one in queue
        ]
        queue.clear()
        return answers

    llm = SimpleNamespace(encode=encode, model_config=SimpleNamespace(max_model_len=64))
    backend = start_backend(monkeypatch, lambda **options: llm)
    queue.append({"prompt_token_ids": [3]})  # left by an interrupt inside encode
    with pytest.raises(GircseError, match="interrupted; embed these texts again"):
        list(backend.refine([Request((1, 2), 2)]))
    ((_, outcome),) = backend.refine([Request((1, 2), 2)])
    assert isinstance(outcome, Refinement)
    assert np.array_equal(outcome.vector, np.eye(4)[1])
