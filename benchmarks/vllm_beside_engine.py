"""What does vLLM's prefix cache gain on queries with one instruction? How does its throughput compare with ours?

    .venv-vllm/bin/python benchmarks/vllm_beside_engine.py [--out benchmarks/results/vllm_beside_engine.json]

Runs in one process on the CPU, K=5. vLLM with and without its prefix cache and our paged engine take turns on the same
queries; a ratio is the median over rounds of the ratio within a round. vLLM without its cache is slow and runs only in
every third round. All queries differ, so a cache can hit only on the instruction. vLLM shares whole blocks, of at least
32 tokens on a CPU (16 on a GPU), so the instruction has more than 32. Fails unless the vectors of all three agree.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from vllm import LLM, PoolingParams

from benchmarks.machine import processor
from gircse_rag.backend import Refinement, Request
from gircse_rag.backends.paged import PagedBackend
from gircse_rag.backends.vllm.export import write
from gircse_rag.backends.vllm.plugin.checks import TESTED
from gircse_rag.checkpoint import load_checkpoint
from gircse_rag.tokens import encode
from tests.vllm.texts import real_texts

STEPS = 5
UNCACHED = "vllm, no prefix cache"
INSTRUCTION = (
    "Given a short question of a programmer about the standard library, its modules, classes, functions and constants, "
    "retrieve the passage of the documentation that answers it"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    checkpoint = load_checkpoint("smollm2-135m", dtype=getattr(torch, arguments.dtype), device="cpu")
    # the first words of real texts, to get the length of questions
    texts = sorted({" ".join(text.split()[:8]) for text in real_texts(3 * arguments.queries)})[: arguments.queries]
    prompts = [
        encode(checkpoint.tokenizer, checkpoint.spec, text, role="query", instruction=INSTRUCTION).token_ids
        for text in texts
    ]
    engines: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = write(checkpoint, Path(scratch) / "merged")
        for name, caching in (("vllm", True), (UNCACHED, False)):
            engines[name] = LLM(
                str(folder),
                dtype=arguments.dtype,
                max_model_len=640,
                max_num_seqs=64,
                max_num_batched_tokens=512,
                block_size=32,
                enable_prefix_caching=caching,
                enforce_eager=True,
            )
    ours = PagedBackend(checkpoint.model, checkpoint.spec)
    hits: list[int] = []

    def run(name: str, part: list[tuple[int, ...]]) -> tuple[float, Any]:
        """Embed the prompts; return seconds and vectors (n, d)."""
        began = time.perf_counter()
        if name == "ours":
            found = dict(ours.refine([Request(ids, STEPS) for ids in part]))
            seconds = time.perf_counter() - began
            return seconds, np.array([one.vector for _, one in sorted(found.items()) if isinstance(one, Refinement)])
        outputs = engines[name].embed(
            [{"prompt_token_ids": list(ids)} for ids in part],
            pooling_params=PoolingParams(extra_kwargs={"steps": STEPS}),
            use_tqdm=False,
        )
        seconds = time.perf_counter() - began
        if name == "vllm":
            hits.extend(output.num_cached_tokens for output in outputs)
        return seconds, np.array([output.outputs.embedding for output in outputs])

    names = ["ours", *engines]
    for name in names:
        run(name, prompts[:8])
    hits.clear()
    size = len(prompts) // arguments.rounds
    rounds, least = [], 1.0
    for turn in range(arguments.rounds):
        order = [name for name in names[turn % 3 :] + names[: turn % 3] if name != UNCACHED or turn % 3 == 0]
        part = prompts[turn * size : (turn + 1) * size]
        done = {name: run(name, part) for name in order}
        rounds.append({name: size / seconds for name, (seconds, _) in done.items()})
        least = min(least, *(float((done["ours"][1] * vectors).sum(-1).min()) for _, vectors in done.values()))
        print(json.dumps({**rounds[-1], "least_cosine": least}), flush=True)
    lengths = [len(ids) for ids in prompts[: size * arguments.rounds]]
    found = {
        "queries": len(lengths),
        "mean_tokens": statistics.mean(lengths),
        "steps": STEPS,
        "dtype": arguments.dtype,
        "threads": torch.get_num_threads(),
        "processor": processor(),
        "vllm": TESTED,
        "torch": torch.__version__,
        "load_average": os.getloadavg(),
        "least_cosine": least,
        "hit_rate": sum(hits) / sum(lengths),
        "cached_tokens_a_query": statistics.median(hits),
        "per_second": {name: statistics.median(one[name] for one in rounds if name in one) for name in names},
        "prefix_cache_gain": statistics.median(one["vllm"] / one[UNCACHED] for one in rounds if UNCACHED in one),
        "ours_to_vllm": statistics.median(one["ours"] / one["vllm"] for one in rounds),
        "rounds": rounds,
    }
    text = json.dumps(found, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")
    if arguments.dtype == "float32" and least < 0.99999:
        sys.exit(f"error: the vectors differ; the lowest cosine is {least}")


if __name__ == "__main__":
    main()
