"""The model compiled by torch.compile, as on a GPU, instead of run eagerly."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from torch._dynamo.utils import counters

from tests import tiny
from tests.vllm.engines import assert_same, embed, engine, reference, some_requests, tiny_folder

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for a CPU needs a C++ compiler (g++)")


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_compiled_float32_equals_the_reference(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "cache"))  # otherwise an old cached graph is used
    folder, requests = tiny_folder(tmp_path / "model", family), some_requests(0, 30)
    counters.clear()
    with engine(folder, enforce_eager=False) as llm:
        found = embed(llm, requests)
        again = embed(llm, requests[::-1])[::-1]
    assert counters["stats"]["unique_graphs"] > 0  # it was compiled
    expected = reference(folder, requests)
    assert_same(found, expected)
    assert_same(again, expected)
