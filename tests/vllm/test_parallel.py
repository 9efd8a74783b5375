"""Tensor parallelism with head and embeddings split over ranks, and data parallelism behind one port."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest

from gircse_rag import Embedder
from gircse_rag.backend import Request
from gircse_rag.backends.vllm.export import export
from tests.vllm.engines import assert_same, plain_folder, reference, some_requests, tiny_folder
from tests.vllm.servers import serve

# vLLM starts each rank as a process, which needs a script guarded by __name__ == "__main__".
SCRIPT = """
import json, sys
from vllm import LLM, PoolingParams
if __name__ == "__main__":
    folder, ranks, requests = sys.argv[1], int(sys.argv[2]), json.load(open(sys.argv[3]))
    llm = LLM(folder, dtype="float32", tensor_parallel_size=ranks, max_model_len=300, max_num_seqs=8, block_size=32,
              max_num_batched_tokens=128, enforce_eager=True, distributed_executor_backend="mp")
    outputs = llm.embed([{"prompt_token_ids": ids} for ids, _ in requests], use_tqdm=False,
                        pooling_params=[PoolingParams(extra_kwargs={"steps": k}) for _, k in requests])
    json.dump([output.outputs.embedding for output in outputs], open(sys.argv[4], "w"))
"""


def embed_in_script(folder: Path, ranks: int, requests: list[Request], scratch: Path) -> list[np.ndarray]:
    script, asked, answered = scratch / "script.py", scratch / "asked.json", scratch / "answered.json"
    script.write_text(SCRIPT)
    asked.write_text(json.dumps([(request.token_ids, request.steps) for request in requests]))
    command = [sys.executable, str(script), str(folder), str(ranks), str(asked), str(answered)]
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return [np.array(vector, dtype=np.float32) for vector in json.loads(answered.read_text())]


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_two_ranks_with_a_tiny_model(tied: bool, tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path, tied=tied)
    requests = some_requests(0, 30, longest=120)
    assert_same(embed_in_script(folder, 2, requests, tmp_path), reference(folder, requests))


@pytest.mark.model
def test_three_ranks_with_the_trained_model(tmp_path: Path) -> None:
    """SmolLM2 has 9 heads and 3 key-value heads: 2 ranks divide neither, 3 ranks divide both."""
    folder = export("smollm2-135m", tmp_path / "exported")
    requests = some_requests(1, 9, longest=60)
    assert_same(embed_in_script(folder, 3, requests, tmp_path), reference(folder, requests))


@pytest.mark.filterwarnings("ignore::gircse_rag.errors.GircseWarning")
def test_two_replicas_behind_one_port(tmp_path: Path) -> None:
    folder = plain_folder(tmp_path / "plain")
    texts = [f"{text} {i}" for i in range(30) for text in ("it is", "-> x", "the way of the world " * 9, "(note)")]
    steps = [(1, 5, 20)[i % 3] for i in range(len(texts))]
    with serve(folder, tmp_path, "--data-parallel-size", "2") as url:
        with Embedder.from_pretrained(str(folder), backend="vllm", url=url) as remote:
            found = remote.embed(texts, steps=steps).vectors
        metrics = httpx.get(f"{url}/metrics").text
    local = Embedder.from_pretrained(str(folder), backend="reference", dtype="float32")
    assert_same(list(found), list(local.embed(texts, steps=steps).vectors))
    counts = re.findall(
        r'^vllm:request_success_total\{engine="(\d)",finished_reason="stop",.*\} ([\d.]+)', metrics, re.M
    )
    done = {engine: float(count) for engine, count in counts}
    assert min(done["0"], done["1"]) > 0 and sum(done.values()) == len(texts)  # both replicas took part
