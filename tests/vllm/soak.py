"""Many requests with random lengths, steps and aborts through one small engine: `python -m tests.vllm.soak 20000`.

    python -m tests.vllm.soak NUMBER [SECONDS] [async]

The cache is too small for all running requests, so requests are preempted often. Prompts repeat, so prefixes are hit.
Every vector is compared with the reference's. Fails on a wrong vector, a leaked slot or block, or growing memory.
Prints one line of JSON at the end.
"""

from __future__ import annotations

import json
import os
import random
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

import psutil

from gircse_rag.backend import Request
from tests.vllm.engines import BLOCK, add, engine, reference, scheduler_of, tiny_folder

POOL = 400
AHEAD = 48
"""Number of unfinished requests to keep submitted: more than can run at once."""


def pool(rng: random.Random) -> list[Request]:
    starts = [tuple(rng.randrange(400) for _ in range(length)) for length in (0, BLOCK, BLOCK + 5, 3 * BLOCK)]
    requests = []
    for _ in range(POOL):
        body = tuple(rng.randrange(400) for _ in range(rng.choice([1, 5, BLOCK, rng.randint(1, 150)])))
        requests.append(Request(rng.choice(starts) + body, rng.choice([1, 2, 5, 5, 5, 8, 20])))
    return requests


def soak(number: int, *, asynchronous: bool, budget: float = float("inf")) -> dict[str, Any]:
    """Put `number` requests through, or as many as `budget` seconds allow.

    Returns:
        Counts of finished, aborted, preempted and submitted requests, the worst cosine, the memory in MB after each
        thousand, and the seconds.

    Raises:
        AssertionError: on a wrong vector, a leaked slot or block, or growing memory.
    """
    rng = random.Random(0)
    requests = pool(rng)
    process = psutil.Process()
    counts: dict[str, Any] = {"finished": 0, "aborted": 0, "preempted": 0, "submitted": 0}
    worst, began = 1.0, time.time()
    memory: list[int] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = tiny_folder(Path(scratch))
        expected = reference(folder, requests)
        with engine(
            folder, max_model_len=320, max_num_seqs=24, num_gpu_blocks_override=26, async_scheduling=asynchronous
        ) as llm:
            live: dict[str, int] = {}
            scheduler = scheduler_of(llm)
            original = scheduler._preempt_request

            def preempt(request: object, *args: object, **kwargs: object) -> None:
                counts["preempted"] += 1
                original(request, *args, **kwargs)

            scheduler._preempt_request = preempt
            while (counts["submitted"] < number and time.time() - began < budget) or live:
                while len(live) < AHEAD and counts["submitted"] < number and time.time() - began < budget:
                    which = rng.randrange(POOL)
                    name = str(counts["submitted"])
                    add(llm, name, requests[which])
                    live[name] = which
                    counts["submitted"] += 1
                    if counts["submitted"] % 1000 == 0:
                        memory.append(process.memory_info().rss >> 20)
                        print(json.dumps({**counts, "worst": worst, "rss_mb": memory[-1]}), flush=True)
                for output in llm.llm_engine.step():
                    cosine = float(output.outputs.data.numpy() @ expected[live.pop(output.request_id)])
                    worst = min(worst, cosine)
                    assert cosine >= 0.9999, (output.request_id, cosine)
                    counts["finished"] += 1
                if live and rng.random() < 0.1:
                    name = rng.choice(sorted(live))
                    llm.llm_engine.abort_request([name])
                    del live[name]
                    counts["aborted"] += 1
            assert len(scheduler.slots) == 0
            free = scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
            assert free == scheduler.kv_cache_manager.block_pool.num_gpu_blocks - 1, free  # one is vLLM's null block
            del scheduler._preempt_request
    half = memory[len(memory) // 2 :]
    if len(half) > 1:
        assert half[-1] - half[0] <= 30, memory  # MB, in the second half
    return {**counts, "worst": worst, "rss_mb": memory, "seconds": round(time.time() - began)}


if __name__ == "__main__":
    found = soak(
        int(sys.argv[1]),
        asynchronous="async" in sys.argv,
        budget=float(sys.argv[2]) if len(sys.argv) > 2 and sys.argv[2].isdigit() else float("inf"),
    )
    print(json.dumps(found))
