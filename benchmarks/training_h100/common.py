"""What all commands share."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from gircse_rag.spec import EmbeddingSpec

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PRODUCTS = torch.bfloat16 if DEVICE == "cuda" else torch.float32
SPEC = EmbeddingSpec(base_model="smollm2-135m-base", base_hash="", tokenizer_hash="", dimension=576)
ADAPTERS = Path("/tmp/adapters")  # where `runs` leaves adapters and `score`, in another process, finds them
STARTED = time.perf_counter()


def say(*parts: object) -> None:
    print(f"[{time.perf_counter() - STARTED:6.1f}]", *parts, flush=True)
