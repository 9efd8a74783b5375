"""`train(config)`: from a config to an adapter that `Embedder.from_pretrained` and PEFT both load."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from gircse_rag.bundled import BUNDLED
from gircse_rag.checkpoint import load_checkpoint
from gircse_rag.errors import CheckpointError, InputError, require
from gircse_rag.hardware import device_of, dtype_of
from gircse_rag.training.config import TrainConfig
from gircse_rag.training.data import Batches, mixed, read_rows, read_tasks
from gircse_rag.training.saving import find_state, replacing, save_adapter, save_record, save_spec
from gircse_rag.training.trainer import Trainer
from gircse_rag.training.unrolled import UnrolledRefinement


def train(config: TrainConfig, on_step: Callable[[dict[str, Any]], None] | None = None) -> Path:
    """Train, or go on where a killed run of the same config stopped.

    Under `accelerate launch` (WORLD_SIZE > 1) every process calls this with the same config.

    Returns:
        `config.output`/checkpoint, the folder of the finished adapter (bfloat16), its tokenizer, spec and model card.

    Raises:
        GircseError: bad data, a bad config, a loss that is not finite, no disk space; saved states stay whole.
    """
    require("accelerate", "train")
    accelerator, device = None, _device(config.device)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import Accelerator

        accelerator = Accelerator(cpu=device == "cpu")
        device = str(accelerator.device)
    tasks = read_tasks(config.tasks)
    rows = mixed(read_rows(config.data, tasks), config.mixture)
    loaded = load_checkpoint(config.model, dtype=torch.float32, device=device)
    if loaded.spec.adapter is not None:
        raise InputError(
            f"{config.model} has an adapter: name its base as `model`, and the adapter's folder as `adapter`"
        )
    spec = replace(loaded.spec, max_length=config.max_length)
    module = UnrolledRefinement(
        _adapted(loaded.model, config),
        dtype=dtype_of(config.dtype, torch.device(device)),
        groups=4,
        level_gradients=config.level_gradients,
    )
    batches = Batches(rows, tasks, loaded.tokenizer, spec, batch_size=config.batch_size, seed=config.seed)
    trainer = Trainer(module, batches, config, accelerator=accelerator, on_step=on_step)
    if find_state(Path(config.output)) is not None:
        trainer.resume(config.output)
    trainer.run()
    if accelerator is None or accelerator.is_main_process:
        _finish(config, module.model, loaded.tokenizer, trainer.cursor)
    if accelerator is not None:
        accelerator.wait_for_everyone()
    return Path(config.output) / "checkpoint"


def _adapted(model: Any, config: TrainConfig) -> Any:
    from peft import LoraConfig, PeftModel, get_peft_model

    torch.manual_seed(config.seed)
    if config.adapter is None:
        lora = LoraConfig(
            r=config.rank, lora_alpha=config.alpha, target_modules=list(config.targets), task_type="CAUSAL_LM"
        )
        return get_peft_model(model, lora)
    known = BUNDLED.get(config.adapter)
    folder = known.adapter if known is not None and known.adapter is not None else config.adapter
    try:
        adapted = PeftModel.from_pretrained(model, folder, is_trainable=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"the adapter {config.adapter} cannot be trained further: {error}") from error
    return adapted.float()


def _finish(config: TrainConfig, model: Any, tokenizer: Any, rows_seen: int) -> None:
    with replacing(Path(config.output), "checkpoint") as fresh:
        save_adapter(fresh, model, config.model, torch.bfloat16)
        tokenizer.save_pretrained(fresh)
        save_spec(fresh, config)
        save_record(fresh, config, rows_seen)
        (fresh / "README.md").write_text(_card(config, rows_seen), encoding="utf-8")


def _card(config: TrainConfig, rows_seen: int) -> str:
    if config.pooling != "refine":
        kind, use = f"A baseline with {config.pooling} pooling", "    gircse eval FOLDER --model path/to/this/folder"
    else:
        kind = f"A GIRCSE adapter (K = {config.steps})"
        use = """    from gircse_rag import Embedder
    embedder = Embedder.from_pretrained("path/to/this/folder")"""
    return f"""---
base_model: {config.model}
library_name: peft
tags: [gircse, sentence-similarity, embeddings]
---
# {kind} for {config.model}

Trained with gircse-rag on {rows_seen} instructed triplets: {", ".join(config.data)}.
Batch {config.batch_size}, temperature {config.temperature},
learning rate {config.learning_rate}, LoRA rank {config.rank}.
`training.json` beside this file holds the whole configuration.

{use}
"""


def _device(name: str) -> str:
    """Of training: "auto" is a CUDA GPU or the CPU: nothing here was tried on MPS."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return str(device_of(name))
