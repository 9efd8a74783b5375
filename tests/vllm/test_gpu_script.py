"""The parts of scripts/check_vllm_gpu.py that run without a GPU: its engine and its verdict."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from gircse_rag.backend import Request
from tests.vllm.engines import BLOCK, reference, some_requests

SCRIPT = Path(__file__).parents[2] / "scripts" / "check_vllm_gpu.py"


def test_its_engine_passes_and_wrong_vectors_fail(llama: Path, tmp_path: Path) -> None:
    requests = some_requests(8, 18, longest=150)
    asked, answered = tmp_path / "asked.json", tmp_path / "answered.json"
    asked.write_text(json.dumps([(request.token_ids, request.steps) for request in requests]))
    options = json.dumps({"enforce_eager": True, "block_size": BLOCK, "max_model_len": 512})
    command = [sys.executable, str(SCRIPT), "--engine", str(llama), str(asked), str(answered), "float32", options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    turns = json.loads(answered.read_text())
    assert judge(turns, reference(llama, requests), requests)["passed"]
    fewer = [Request(request.token_ids, max(1, request.steps - 1)) for request in requests]
    assert not judge(turns, reference(llama, fewer), requests)["passed"]


def judge(turns: list[list[list[float]]], exact: list[np.ndarray], requests: list[Request]) -> dict[str, object]:
    spec = importlib.util.spec_from_file_location("check_vllm_gpu", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: dict[str, object] = module.judge(np, turns, np.array(exact), requests, "float32", 0.0)
    return found


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: run the script itself")
def test_without_a_gpu_the_script_says_so() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "no CUDA GPU found" in done.stderr
