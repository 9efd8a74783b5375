"""Embed texts with an encoder-style baseline, for `evaluate`. `Embedder` loads GIRCSE checkpoints only."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from gircse_rag.checkpoint import load_checkpoint
from gircse_rag.checkpoint.spec_file import read_spec_file
from gircse_rag.errors import CheckpointError, InputError
from gircse_rag.prompts import Role
from gircse_rag.refinement import pool
from gircse_rag.tokens import encode
from gircse_rag.training.packing import token_chunks
from gircse_rag.training.saving import read_record
from gircse_rag.training.unrolled import UnrolledRefinement

CHUNK_TOKENS = 4096
"""Prompt tokens per forward pass."""


def trained_pooling(model: str | Path) -> str | None:
    """Return the pooling ("refine", "last" or "mean") of a folder that training wrote; None for anything else."""
    try:
        config: Any = json.loads((Path(model) / "training.json").read_text(encoding="utf-8"))["config"]
        return str(config["pooling"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


class Baseline:
    """An `EmbedFn` over an adapter that was trained with last-token or mean pooling.

    Args:
        folder: returned by `train`, or an output folder's `state`.
        dtype: of the matrix products.

    Raises:
        CheckpointError: the folder holds no baseline, or its adapter cannot be loaded.
    """

    def __init__(self, folder: str | Path, *, dtype: torch.dtype = torch.float32) -> None:
        from peft import PeftModel

        self.pooling = trained_pooling(folder)
        if self.pooling not in ("last", "mean"):
            raise CheckpointError(f"{folder} was not trained with pooling last or mean")
        config = read_record(Path(folder))["config"]
        base = load_checkpoint(config["model"], dtype=torch.float32, device="cpu", preset=config.get("preset"))
        try:
            adapted = PeftModel.from_pretrained(base.model, str(folder)).float().requires_grad_(False)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(f"the adapter in {folder} cannot be loaded: {error}") from error
        self.module = UnrolledRefinement(adapted, dtype=dtype, groups=4)
        self.tokenizer, self.truncated = base.tokenizer, 0
        spec_fields, _ = read_spec_file(Path(folder))
        self.spec = replace(base.spec, **{**spec_fields, "max_length": config["max_length"]})

    def __call__(self, texts: list[str], role: Role, instruction: str | None, steps: tuple[int, ...]) -> np.ndarray:
        """Embed n texts: (n, 1, d) float32, unit rows. `steps` must be (0,).

        Raises:
            InputError: `steps` is not (0,).
        """
        if steps != (0,):
            raise InputError(f"pooling {self.pooling!r} has no refinement steps: score it with steps=(0,), not {steps}")
        prompts = [encode(self.tokenizer, self.spec, text, role=role, instruction=instruction) for text in texts]
        self.truncated += sum(prompt.truncated for prompt in prompts)
        ids = [list(prompt.token_ids) for prompt in prompts]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        vectors = np.empty((len(ids), 1, self.spec.dimension), dtype=np.float32)
        with torch.no_grad():
            for part in token_chunks(ids, order, CHUNK_TOKENS):
                vectors[part] = pool(self.module([ids[i] for i in part], 1, self.pooling)).numpy()
        return vectors
