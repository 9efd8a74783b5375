"""Shared by the benchmark programs: texts, our engine, the authors' loop, and timing in rounds.

A round times every contestant on the same texts, one after the other, in an order that rotates with the round. A ratio
is the median over rounds of the ratio within a round, so a slow round affects both sides.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import authors_loop
from benchmarks.machine import idle, timed
from gircse_rag.backend import Refinement, Request
from gircse_rag.backends.paged import PagedBackend
from gircse_rag.checkpoint import Checkpoint, load_checkpoint
from gircse_rag.prompts import DEFAULT_INSTRUCTION
from tests import laser

Prompts = list[tuple[int, ...]]
Vectors = NDArray[np.float32]
Contestants = Mapping[str, Callable[[Prompts], Any]]

LOOP = "loop"
DOCUMENT_SOURCES = ("medquad", "docs", "acl", "foldoc", "pydoc", "wordnet")
QUERY_SOURCES = ("medquad", "docs", "acl", "foldoc", "wordnet")


def load(arguments: argparse.Namespace) -> Checkpoint:
    """Set the number of threads and load the model, on a CPU unless the program has --device."""
    torch.set_num_threads(arguments.threads)
    device = getattr(arguments, "device", "cpu")
    return load_checkpoint(arguments.model, dtype=getattr(torch, arguments.dtype), device=device)


def texts(data: Path, checkpoint: Checkpoint, number: int) -> tuple[Prompts, Prompts]:
    """Read at most `number` documents of 5-300 tokens, and short queries with one instruction, in random order."""
    documents: set[str] = set()
    queries: set[str] = set()
    for source in DOCUMENT_SOURCES:
        with gzip.open(data / "train" / f"{source}.jsonl.gz", "rt", encoding="utf-8") as file:
            rows = [json.loads(line) for _, line in zip(range(number), file, strict=False)]
        documents |= {row["positive"] for row in rows}
        if source in QUERY_SOURCES:
            queries |= {row["query"] for row in rows if len(row["query"].split()) <= 12}
    template = checkpoint.spec.query_template
    bodies = [ids for ids in _encode(checkpoint, sorted(documents)) if 5 <= len(ids) <= 300]
    prompts = _encode(checkpoint, [template.format(instruction=DEFAULT_INSTRUCTION, text=q) for q in sorted(queries)])
    rng = random.Random(0)
    rng.shuffle(bodies)
    rng.shuffle(prompts)
    return bodies[:number], prompts[:number]


def paged(backend: PagedBackend, steps: int) -> Callable[[Prompts], Vectors]:
    """Wrap our engine: prompts -> z_steps, (n, d), in their order."""

    def work(prompts: Prompts) -> Vectors:
        vectors = np.empty((len(prompts), backend.dimension), dtype=np.float32)
        for index, outcome in backend.refine(Request(prompt, steps) for prompt in prompts):
            if not isinstance(outcome, Refinement):
                raise outcome
            vectors[index] = outcome.vector
        return vectors

    return work


def loop(model: Any, steps: int) -> Callable[[Prompts], Vectors]:
    """Wrap the authors' loop in the same way."""
    return lambda prompts: authors_loop.embed(model, prompts, steps).cpu().numpy()


def laser_loop(model: Any, steps: int) -> Callable[[Prompts], Vectors]:
    """Wrap LaSER's published loop in the same way, with the authors' batches of 32 texts."""

    def work(prompts: Prompts) -> Vectors:
        size = authors_loop.BATCH_SIZE
        batches = [prompts[start : start + size] for start in range(0, len(prompts), size)]
        with torch.device(model.device):
            vectors = [laser.encode(model, [list(prompt) for prompt in batch], steps) for batch in batches]
        return torch.cat(vectors).float().cpu().numpy()

    return work


class Work:
    """Counts the work of an engine: forwards, rows through the layers, and rows through the LM head (soft rows)."""

    def __init__(self, backend: PagedBackend) -> None:
        self.rows = self.soft_rows = self.forwards = 0
        runner: Any = backend._engine.runner
        forward, soft_tokens = runner.forward, runner.soft_tokens

        def counted_forward(chunks: Any) -> Any:
            self.forwards += 1
            self.rows += sum(num_rows for _, num_rows in chunks)
            return forward(chunks)

        def counted_soft_tokens(hidden: Any, *rest: Any) -> Any:
            self.soft_rows += len(hidden)
            return soft_tokens(hidden, *rest)

        runner.forward, runner.soft_tokens = counted_forward, counted_soft_tokens

    def flops(self, model: Any) -> int:
        """Count 2 operations per row and layer weight, and 2 per soft token and element of LM head and E."""
        body: int = sum(weight.numel() for weight in model.model.layers.parameters() if weight.dim() == 2)
        vocabulary: int = model.get_input_embeddings().weight.numel()
        return 2 * body * self.rows + 4 * vocabulary * self.soft_rows


def compare(
    contestants: Contestants, rounds: Sequence[Prompts], arguments: argparse.Namespace, *, warm: Prompts
) -> dict[str, Any]:
    """Time all contestants on each round's texts. Each first runs `warm` untimed, to fill the caches again."""
    names = list(contestants)
    results: list[dict[str, Any]] = []
    for number, prompts in enumerate(rounds):
        with idle(arguments):
            first = number % len(names)
            row: dict[str, Any] = {"texts": len(prompts), "load": os.getloadavg()[0]}
            for name in names[first:] + names[:first]:
                contestants[name](warm)
                row[name] = timed(lambda name=name, prompts=prompts: contestants[name](prompts))  # type: ignore[misc]
            results.append(row)
    return {**summary(results, names), "rounds": results}


def ratio(rounds: Sequence[Mapping[str, Any]], one: str, other: str, clock: str = "wall") -> float:
    """Median over rounds of the time of `one` divided by that of `other`."""
    return float(statistics.median(row[one][clock] / row[other][clock] for row in rounds))


def summary(rounds: Sequence[Mapping[str, Any]], names: Sequence[str], clock: str = "wall") -> dict[str, Any]:
    """Medians over rounds: texts per second, speedup over the authors' loop, and its inverse (`time_ratio`)."""
    others = [name for name in names if name != LOOP] if LOOP in names else []
    return {
        "texts_per_second": {
            name: statistics.median(row["texts"] / row[name][clock] for row in rounds) for name in names
        },
        "speedup": {name: ratio(rounds, LOOP, name, clock) for name in others},
        "time_ratio": {name: ratio(rounds, name, LOOP, clock) for name in others},
    }


def split(prompts: Prompts, rounds: int) -> list[Prompts]:
    """Split prompts into rounds of equal size; drop the rest."""
    size = len(prompts) // rounds
    if not size:
        raise SystemExit(f"{len(prompts)} texts do not make {rounds} rounds")
    return [prompts[number * size : (number + 1) * size] for number in range(rounds)]


def _encode(checkpoint: Checkpoint, chosen: list[str]) -> Prompts:
    return [tuple(ids) for ids in checkpoint.tokenizer(chosen, add_special_tokens=False)["input_ids"]]
