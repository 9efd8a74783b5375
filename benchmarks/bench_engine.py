"""The paged engine against the authors' loop, in turn in one process; JSON out.

    python benchmarks/bench_engine.py MODEL DATA OUT.json [--texts 2000] [--steps 1 5 20] [--threads 1]

MODEL is a bundled name, folder or Hub id; DATA is laid out like shared/data (its train rows are only timed). Every
round times both on the same texts, so that a busy machine slows both; ratios are medians over rounds of the ratio
within a round. Where a machine is shared, read the ratios of CPU time: `cpu` beside `wall`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import random
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import authors_loop
from gircse_rag.backends.base import Request
from gircse_rag.backends.paged import PagedBackend
from gircse_rag.checkpoint import load_checkpoint
from gircse_rag.prompts import DEFAULT_INSTRUCTION

Prompts = list[tuple[int, ...]]
DOCUMENT_SOURCES = ("medquad", "docs", "acl", "foldoc", "pydoc", "wordnet")
QUERY_SOURCES = ("medquad", "docs", "acl", "foldoc", "wordnet")


def texts(data: Path, tokenizer: Any, template: str, number: int) -> tuple[Prompts, Prompts]:
    """`number` documents of 5-300 tokens and `number` short queries that share one instruction, in random order."""
    documents: set[str] = set()
    queries: set[str] = set()
    for source in DOCUMENT_SOURCES:
        with gzip.open(data / "train" / f"{source}.jsonl.gz", "rt", encoding="utf-8") as file:
            rows = [json.loads(line) for _, line in zip(range(number), file, strict=False)]
        documents |= {row["positive"] for row in rows}
        if source in QUERY_SOURCES:
            queries |= {row["query"] for row in rows if len(row["query"].split()) <= 12}
    rng = random.Random(0)

    def encode(chosen: list[str]) -> Prompts:
        return [tuple(ids) for ids in tokenizer(chosen, add_special_tokens=False).input_ids]

    bodies = [ids for ids in encode(sorted(documents)) if 5 <= len(ids) <= 300]
    rendered = [template.format(instruction=DEFAULT_INSTRUCTION, text=query) for query in sorted(queries)]
    prompts = encode(rendered)
    rng.shuffle(bodies)
    rng.shuffle(prompts)
    return bodies[:number], prompts[:number]


def timed(work: Callable[[], object]) -> dict[str, float]:
    """Seconds of wall clock and of CPU time."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def peak_gflops() -> float:
    """The machine itself: a large bfloat16 matrix product."""
    a, b = torch.randn(1024, 2048).bfloat16(), torch.randn(2048, 2048).bfloat16()
    times = [
        timed(lambda: torch.nn.functional.linear(a, b))["cpu" if torch.get_num_threads() == 1 else "wall"]
        for _ in range(9)
    ]
    return 2 * 1024 * 2048 * 2048 / statistics.median(times) / 1e9


def compare(
    ours: Callable[[Prompts], object], theirs: Callable[[Prompts], object], rounds: list[Prompts]
) -> dict[str, Any]:
    """Times both on each round's texts, the order alternating."""
    results = []
    for number, prompts in enumerate(rounds):
        row: dict[str, Any] = {"load": os.getloadavg()[0]}
        pair = [("ours", ours), ("authors", theirs)]
        for name, work in pair if number % 2 else reversed(pair):
            row[name] = timed(lambda work=work, prompts=prompts: work(prompts))  # type: ignore[misc]
        results.append(row)
    texts = statistics.mean(map(len, rounds))
    summary: dict[str, Any] = {"texts": sum(map(len, rounds)), "rounds": results}
    for clock in ("wall", "cpu"):
        summary[f"ratio_{clock}"] = statistics.median(row["authors"][clock] / row["ours"][clock] for row in results)
        for name in ("ours", "authors"):
            summary[f"{name}_per_second_{clock}"] = texts / statistics.median(row[name][clock] for row in results)
    return summary


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 5, 20])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    checkpoint = load_checkpoint(arguments.model, dtype=getattr(torch, arguments.dtype), device=arguments.device)
    model = checkpoint.model
    documents, queries = texts(
        arguments.data, checkpoint.tokenizer, checkpoint.spec.query_template, arguments.texts + 64
    )
    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    report: dict[str, Any] = {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cpus": os.cpu_count(),
            "device": arguments.device,
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "settings": {"model": arguments.model, "dtype": arguments.dtype, "threads": arguments.threads},
        "load_at_start": os.getloadavg(),
        "results": {},
    }
    if arguments.device == "cpu":
        report["machine"]["peak_bf16_gflops"] = peak_gflops()
    else:
        report["machine"]["gpu"] = torch.cuda.get_device_name()

    def authors(prompts: Prompts, steps: int) -> object:
        return authors_loop.embed(model, prompts, steps).cpu()

    for steps in arguments.steps:
        backend = PagedBackend(model, checkpoint.spec)  # a fresh prefix cache

        def paged(prompts: Prompts, steps: int = steps, backend: PagedBackend = backend) -> object:
            return list(backend.refine(Request(prompt, steps) for prompt in prompts))

        for name, prompts in (("documents", documents), ("queries", queries)):
            warm, rest = prompts[:32], prompts[64:]
            paged(warm)
            authors(warm, steps)
            size = len(rest) // arguments.rounds
            rounds = [rest[i * size : (i + 1) * size] for i in range(arguments.rounds)]
            result = compare(paged, lambda part, steps=steps: authors(part, steps), rounds)  # type: ignore[misc]
            result["mean_tokens"] = statistics.mean(map(len, rest))
            report["results"][f"{name}, K={steps}"] = result
        singles = [[prompt] for prompt in queries[32:64]]
        report["results"][f"one query, K={steps}"] = compare(
            paged,
            lambda part, steps=steps: authors(part, steps),
            singles,  # type: ignore[misc]
        )
        arguments.out.write_text(json.dumps(report, indent=1))
        for name, result in report["results"].items():
            print(f"{name}: {result['ratio_wall']:.2f}x wall, {result['ratio_cpu']:.2f}x cpu", flush=True)
    report["peak_rss_above_model_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - loaded
    report["load_at_end"] = os.getloadavg()
    arguments.out.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
