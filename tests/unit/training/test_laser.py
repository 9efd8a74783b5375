"""Training with LaSER's pooling: the states that the loss sees are those that the checkpoint pools."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from gircse_rag import Embedder
from gircse_rag.checkpoint import load_checkpoint
from gircse_rag.errors import InputError
from gircse_rag.refinement import pool
from gircse_rag.training.batches import Batches
from gircse_rag.training.config import TrainConfig
from gircse_rag.training.run import train
from gircse_rag.training.trainer import Trainer
from gircse_rag.training.unrolled import UnrolledRefinement
from tests import laser, tiny
from tests.unit.training.test_trainer import ROWS, SPEC, TASKS, inputs

PROMPTS = [[5], list(range(40, 57)), [7, 7, 3]]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("steps", [1, 2, 3, 8])
def test_the_unrolled_states_pool_to_the_published_loop(tied: bool, steps: int) -> None:
    model = tiny.model("qwen3", tied=tied)
    states = UnrolledRefinement(model)(PROMPTS, steps - 1, "refine", True)
    assert states.shape == (3, steps, 32)
    expected = laser.encode(model.double(), PROMPTS, steps)
    assert float((1 - (pool(states)[:, -1].double() * expected).sum(-1)).max()) <= 1e-6


def test_zero_soft_tokens_need_the_prompts_state() -> None:
    with pytest.raises(InputError, match="at least one refinement step"):
        UnrolledRefinement(tiny.model("qwen3"))(PROMPTS, 0)


@pytest.mark.parametrize("lexical", [0.0, 0.1])
@pytest.mark.parametrize("steps", [1, 3])
def test_the_objective_sees_the_pooled_states(tmp_path: Path, steps: int, lexical: float) -> None:
    """Alone and beside lexical supervision, which reads the states that make soft tokens."""
    seen: list[torch.Tensor] = []

    class Recorder(Trainer):
        def objective(self, batch: Any, states: torch.Tensor) -> Any:
            seen.append(states.detach())
            return super().objective(batch, states)

        def supervise(self, batch: Any, states: torch.Tensor) -> torch.Tensor:
            assert torch.equal(states.detach(), seen[-1])  # h_0..h_{K-1} in both
            return super().supervise(batch, states)

    values = {"data": "d", "tasks": "t", "rows": 6, "batch_size": 6, "output": str(tmp_path), "lexical_weight": lexical}
    config = TrainConfig.of({**values, "steps": steps})
    module = UnrolledRefinement(get_peft_model(tiny.model("qwen3"), LoraConfig(r=2, target_modules=["q_proj"])))
    spec = replace(SPEC, pooling="mean_with_prompt")
    trainer = Recorder(module, Batches(ROWS, TASKS, tiny.tokenizer(), spec, batch_size=6), config)
    batch = next(trainer.batches.start())
    trainer.step(batch)
    expected = laser.encode(tiny.model("qwen3").double(), [list(text) for text in batch.texts], steps)
    (states,) = seen
    assert states.shape == (len(batch.texts), steps, 32)
    assert float((1 - (pool(states)[:, -1].double() * expected).sum(-1)).max()) <= 1e-6


@pytest.mark.slow
def test_a_preset_is_trained_saved_and_trained_further(tmp_path: Path) -> None:
    values = {**inputs(tmp_path), "preset": "laser", "rows": 12, "steps": 3, "model": str(tmp_path / "laser")}
    laser.folder(tmp_path / "laser")
    folder = train(TrainConfig.of(values))
    embedder = Embedder.from_pretrained(str(folder), device="cpu", dtype="float32")
    assert embedder.spec.pools_prompt and embedder.spec.query_template.startswith("<|im_start|>user\n")
    model = load_checkpoint(str(folder), dtype=torch.float32, device="cpu").model.double()
    head, tail = "<|im_start|>user\n", embedder.spec.suffix
    ids = [embedder.backend_tokenizer.encode(head + text + tail).ids for text in ("one", "another text")]
    found = embedder.embed_documents(["one", "another text"])
    assert (1 - (found * laser.encode(model, ids, 3).numpy()).sum(axis=1)).max() <= 1e-6
    further = train(
        TrainConfig.of({**values, "preset": None, "output": str(tmp_path / "more"), "adapter": str(folder)})
    )
    again = Embedder.from_pretrained(str(further), device="cpu", dtype="float32")
    kept = ("pooling", "query_template", "document_template", "suffix")
    assert [getattr(again.spec, name) for name in kept] == [getattr(embedder.spec, name) for name in kept]
    assert not np.array_equal(again.embed_documents(["one"]), embedder.embed_documents(["one"]))
