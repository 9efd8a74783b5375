"""Each of the four architectures with tiny random weights, tied and untied, against the reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gircse_rag.backend import Request
from gircse_rag.backends.vllm.export import export
from tests import tiny
from tests.vllm.engines import (
    assert_same,
    embed,
    engine,
    plain_folder,
    reference,
    some_requests,
    tiny_folder,
)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_tiny_models_reveal_a_missing_soft_token(family: str, tmp_path: Path) -> None:
    folder, requests = plain_folder(tmp_path, family), some_requests(0, 6)
    four, five = (reference(folder, [Request(request.token_ids, steps) for request in requests]) for steps in (4, 5))
    assert max(float(one @ two) for one, two in zip(four, five, strict=True)) < 0.9996


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_float32_equals_the_reference(family: str, tied: bool, tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path, family, tied=tied)
    requests = some_requests(0, 30)
    with engine(folder) as llm:
        found = embed(llm, requests)
        again = embed(llm, requests[::-1])[::-1]  # in another order and with prefix hits
    expected = reference(tmp_path / "plain", requests)
    assert_same(found, expected)
    assert_same(again, expected)


def test_temperature_and_steps_default_to_the_checkpoints(tmp_path: Path) -> None:
    plain = plain_folder(tmp_path / "plain")
    (plain / "gircse.json").write_text('{"temperature": 0.3, "document_steps": 3}')
    folder = export(str(plain), tmp_path / "exported")
    requests = [Request(request.token_ids, 3) for request in some_requests(1, 8)]
    with engine(folder) as llm:
        prompts = [{"prompt_token_ids": list(request.token_ids)} for request in requests]
        found = [output.outputs.embedding for output in llm.embed(prompts, use_tqdm=False)]
    assert_same([np.array(vector) for vector in found], reference(plain, requests))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_error_is_comparable_to_the_references(llama: Path, dtype: str) -> None:
    requests = some_requests(2, 40)
    exact = np.array(reference(llama, requests))
    with engine(llama, dtype=dtype) as llm:
        found = np.array(embed(llm, requests))
    own = np.array(reference(llama, requests, dtype=dtype))
    distances = [1 - float((vectors * exact).sum(-1).mean()) for vectors in (found, own)]
    assert not np.array_equal(found, exact)  # it did run in half precision
    assert distances[0] <= 2 * distances[1] + 1e-6, distances
