"""LaSER's pooling in vLLM: h_0 is pooled and one soft token less is fed; K = 1 feeds none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from gircse_rag import Embedder
from gircse_rag.backend import Request
from gircse_rag.backends.vllm.export import export
from tests.vllm.engines import assert_same, embed, engine, plain_folder, reference, scheduler_of, some_requests


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_float32_equals_the_reference_and_the_engine(tied: bool, tmp_path: Path) -> None:
    plain = plain_folder(tmp_path / "plain", "qwen3", tied=tied)
    folder = export(str(plain), tmp_path / "exported", preset="laser-quickstart")
    requests = some_requests(0, 30, steps=(1, 2, 3, 5, 20))
    default = [Request(request.token_ids, 3) for request in requests]  # K of the spec
    with engine(folder) as llm:
        found = embed(llm, requests)
        again = embed(llm, requests[::-1])[::-1]  # in another order and with prefix hits
        prompts = [{"prompt_token_ids": list(request.token_ids)} for request in default]
        three = [np.asarray(output.outputs.embedding) for output in llm.embed(prompts, use_tqdm=False)]
        assert not len(scheduler_of(llm).slots)
    expected = reference(folder, requests)
    assert_same(found, expected)
    assert_same(again, expected)
    assert_same(three, reference(folder, default))
    paged = Embedder.from_pretrained(str(folder), dtype="float32", device="cpu")
    outcomes = dict(paged.backend.refine(requests))
    assert_same(found, [outcomes[index].vector for index in range(len(requests))])  # type: ignore[union-attr]
    of_gircse = reference(plain, default)
    assert max(float(one @ two) for one, two in zip(three, of_gircse, strict=True)) < 0.9999


def test_the_exported_entry_names_the_pooling(tmp_path: Path) -> None:
    plain = plain_folder(tmp_path / "plain", "qwen3")
    folder = export(str(plain), tmp_path / "exported", preset="laser-quickstart")
    config = json.loads((folder / "config.json").read_text())
    assert config["gircse"]["spec"]["pooling"] == "mean_with_prompt"
    assert config["architectures"] == ["GircseQwen3ForCausalLM"]
