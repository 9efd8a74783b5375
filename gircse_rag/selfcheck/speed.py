"""Texts per second beside the reference."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from gircse_rag.checkpoint import Checkpoint
from gircse_rag.hardware import dtype_of
from gircse_rag.prompts import Role
from gircse_rag.selfcheck.finding import Figures
from gircse_rag.selfcheck.samples import SAMPLE, engine, reference, sample_texts

NUMBER = {"cuda": 1024}  # texts of the engine; elsewhere 32


def check_speed(load: Callable[..., Checkpoint], device: torch.device) -> Figures:
    """Texts per second of the engine and of the reference, which embeds one text at a time, in the device's dtype."""
    checkpoint = load(dtype=dtype_of("auto", device))
    number = NUMBER.get(device.type, 32)
    contestants = {"engine": (engine(checkpoint), number), "reference": (reference(checkpoint), SAMPLE)}
    figures: dict[str, float] = {}
    plurals: dict[Role, str] = {"document": "documents", "query": "queries"}
    for role, plural in plurals.items():
        for contestant, (embedder, count) in contestants.items():
            texts = [f"{index} {text}" for index, text in enumerate(reversed(sample_texts(count + SAMPLE, role)))]
            embedder.embed(texts[count:], role=role)  # warms up; holds the long document
            seconds = measure_seconds(partial(embedder.embed, texts[:count], role=role), device)
            figures[f"{contestant} {plural}/s"] = count / seconds
            if role == "query":
                alone = [partial(embedder.embed, [f"{text}?"], role=role) for text in texts[:SAMPLE]]
                median = float(np.median([measure_seconds(one, device) for one in alone]))
                figures[f"{contestant} one query ms"] = 1000 * median
    return figures, {}


def measure_seconds(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
