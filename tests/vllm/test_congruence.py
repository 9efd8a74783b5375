"""The shipped, trained checkpoint inside vLLM gives the reference's vectors: real texts, steps mixed in every batch."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from gircse_rag.backend import Request
from gircse_rag.backends.vllm.export import export
from gircse_rag.backends.vllm.plugin.settings import spec_of
from gircse_rag.checkpoint import load_tokenizer
from gircse_rag.tokens import encode
from tests.vllm.engines import assert_same, embed, engine, reference, scheduler_of
from tests.vllm.texts import real_texts

pytestmark = pytest.mark.model
NUMBER = int(os.environ.get("GIRCSE_VLLM_TEXTS", "200"))
STEPS = (1, 5, 20)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export("smollm2-135m", tmp_path_factory.mktemp("smollm2") / "exported")


@pytest.fixture(scope="module")
def requests(folder: Path) -> list[Request]:
    """Documents, queries and queries with an instruction of their own in turn."""
    tokenizer, _ = load_tokenizer(str(folder))
    spec = spec_of(json.loads((folder / "config.json").read_text()), str(folder))
    made = []
    for i, text in enumerate(real_texts(NUMBER)):
        role = "document" if i % 3 == 0 else "query"
        instruction = "Given a function's documentation, find its module" if i % 3 == 2 else None
        prompt = encode(tokenizer, spec, text, role=role, instruction=instruction)  # type: ignore[arg-type]
        made.append(Request(prompt.token_ids, STEPS[i // 3 % 3]))
    return made


@pytest.fixture(scope="module")
def expected(folder: Path, requests: list[Request]) -> list[NDArray[np.float32]]:
    return reference(folder, requests)


def test_float32_vectors_are_the_references(
    folder: Path, requests: list[Request], expected: list[NDArray[np.float32]]
) -> None:
    with engine(folder, max_model_len=640, max_num_seqs=32, max_num_batched_tokens=256) as llm:
        found = embed(llm, requests)
    cosines = np.array([vector @ wanted for vector, wanted in zip(found, expected, strict=True)])
    for steps in STEPS:
        of_these = cosines[[request.steps == steps for request in requests]]
        print(f"{len(of_these)} texts, K={steps}: min cos {of_these.min():.7f}")
    # At K=20 too: the trained model's recursion settles, so rounding does not grow as it does untrained (0.9956).
    assert_same(found, expected)


def test_a_tiny_cache_preempts_and_changes_nothing(folder: Path, requests: list[Request]) -> None:
    some = [request for request in requests if len(request.token_ids) <= 160][:24]
    with engine(
        folder,
        max_model_len=192,
        max_num_batched_tokens=128,
        num_gpu_blocks_override=10,
        scheduler_reserve_full_isl=False,  # else a request waits until all of its text fits
    ) as llm:
        scheduler = scheduler_of(llm)
        preempted = []
        original = scheduler._preempt_request
        scheduler._preempt_request = lambda request, *args, **kwargs: (
            preempted.append(request.request_id),
            original(request, *args, **kwargs),
        )
        found = embed(llm, some)
        del scheduler._preempt_request
    assert preempted
    assert_same(found, reference(folder, some))
