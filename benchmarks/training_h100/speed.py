"""Rows a second and memory of the trainer's own step (packed, without graphs), by batch size."""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch

from benchmarks.training_h100.common import DEVICE, SPEC, say
from benchmarks.training_h100.module import build
from benchmarks.training_h100.rows import Ahead, load
from gircse_rag.training.config import TrainConfig
from gircse_rag.training.trainer import Trainer

WARM, STEPS = 4, 10


def speed(base: Path, data: Path, out: Path, sizes: list[int], tokenizer: Path, groups: int) -> None:
    rows, tasks, reader = load(data, tokenizer)
    say("rows", len(rows))
    table = []
    for size in sizes:
        values = {"batch_size": size, "rows": 10**9, "learning_rate": 1e-4, "chunk_tokens": 100_000}
        config = TrainConfig.of({"output": "/tmp/speed", "data": "t", "tasks": "t", **values})
        trainer = Trainer(build(base, config, groups=groups), Ahead(rows, tasks, reader, SPEC, batch_size=size), config)
        batches = trainer.batches.start(0)
        for _ in range(WARM):
            trainer.step(next(batches))
        if DEVICE == "cuda":
            torch.cuda.reset_peak_memory_stats()
        done, tokens, begun = 0, 0, time.perf_counter()
        for _ in range(STEPS):
            batch = next(batches)
            trainer.step(batch)
            done += len(batch.rows)
            tokens += sum(map(len, batch.texts))
        seconds = time.perf_counter() - begun
        peak = torch.cuda.max_memory_allocated() / 1e9 if DEVICE == "cuda" else None
        rates = {"rows_per_second": done / seconds, "tokens_per_second": tokens / seconds}
        table.append({"batch": size, **rates, "peak_gb": peak})
        say(table[-1])
        del trainer
        if DEVICE == "cuda":
            torch.cuda.empty_cache()
    (out / "speed.json").write_text(json.dumps(table))
