"""Train an adapter that `Embedder.from_pretrained` and PEFT can load: `train(config)`."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from filelock import BaseFileLock, FileLock, Timeout
from safetensors import SafetensorError

from gircse_rag.checkpoint import Checkpoint, load_checkpoint
from gircse_rag.checkpoint.bundled import BUNDLED
from gircse_rag.checkpoint.locate import locate
from gircse_rag.checkpoint.rotation import Rotation
from gircse_rag.checkpoint.spec_file import SPEC_FILE, read_spec_file
from gircse_rag.errors import CheckpointError, InputError, require
from gircse_rag.hardware import device_of, dtype_of
from gircse_rag.spec import DEFAULT_STEPS, EmbeddingSpec
from gircse_rag.training.batches import Batches
from gircse_rag.training.config import TrainConfig
from gircse_rag.training.data import mix_rows, read_rows, read_tasks
from gircse_rag.training.saving import find_state, replacing, save_adapter, save_record, save_spec
from gircse_rag.training.trainer import Trainer
from gircse_rag.training.unrolled import UnrolledRefinement


def train(
    config: TrainConfig, on_step: Callable[[dict[str, Any]], None] | None = None, *, trainer: type[Trainer] = Trainer
) -> Path:
    """Train an adapter, or resume a killed run of the same config.

    Under `accelerate launch` (WORLD_SIZE > 1) every process calls this with the same config.

    Args:
        on_step: called with each log record (main process).
        trainer: a subclass of `Trainer` with another loss (`Trainer.objective`).

    Returns:
        `config.output`/checkpoint: the folder of the finished adapter (bfloat16), tokenizer, spec and model card.

    Raises:
        GircseError: bad data, a bad config, a loss that is not finite, or no disk space. Saved states stay intact.
    """
    require("accelerate", "train")
    accelerator, device = None, str(device_of(config.device))
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import Accelerator

        accelerator = Accelerator(cpu=device == "cpu")
        device = str(accelerator.device)
    tasks = read_tasks(config.tasks)
    rows = mix_rows(read_rows(config.data, tasks), config.mixture)
    loaded = load_checkpoint(config.model, dtype=torch.float32, device=device, preset=config.preset)
    if loaded.spec.adapter is not None:
        raise InputError(
            f"{config.model} has an adapter: set `model` to its base model, and `adapter` to the adapter's folder"
        )
    spec = _make_spec(loaded, config)
    module = UnrolledRefinement(
        _add_adapter(loaded.model, config),
        dtype=dtype_of(config.dtype, torch.device(device)),
        groups=4,
        clip_text_gradients=config.clip_text_gradients,
    )
    batches = Batches(rows, tasks, loaded.tokenizer, spec, batch_size=config.batch_size, seed=config.seed)
    main = accelerator is None or accelerator.is_main_process
    with _lock_output(Path(config.output)) if main else nullcontext():
        loop = trainer(module, batches, config, accelerator=accelerator, on_step=on_step)
        if find_state(Path(config.output)) is not None:
            loop.resume(config.output)
        loop.run()
        if main:
            _save_checkpoint(config, module.model, batches, loop.cursor)
        if accelerator is not None:
            accelerator.wait_for_everyone()
    return Path(config.output) / "checkpoint"


def _lock_output(output: Path) -> AbstractContextManager[BaseFileLock]:
    """Lock the output folder until the end of a `with` block: two runs would overwrite each other's states.

    Raises:
        CheckpointError: another process trains there.
        InputError: the folder cannot be created or written to.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        return FileLock(output / ".lock", timeout=0).acquire()
    except Timeout as error:
        raise CheckpointError(
            f"another process trains into {output} (it holds {output / '.lock'}); wait, or choose another `output`"
        ) from error
    except OSError as error:
        raise InputError(f"could not write to {output}: {error}") from error


def _make_spec(base: Checkpoint, config: TrainConfig) -> EmbeddingSpec:
    """Spec of the base model, or of the adapter to start from, with the config's length and steps.

    Raises:
        InputError: the temperature is not 1, texts may exceed the model's window, or `dimensions` its width.
    """
    spec_fields = {} if config.adapter is None else read_spec_file(_adapter_folder(config.adapter))[0]
    steps = config.steps if isinstance(config.steps, int) else DEFAULT_STEPS
    spec = replace(base.spec, **{**spec_fields, "max_length": config.max_length, "document_steps": steps})
    if spec.temperature != 1:
        raise InputError(f"{SPEC_FILE} sets temperature {spec.temperature}; training supports only 1")
    if config.dimensions and config.dimensions[-1] > spec.dimension:
        raise InputError(
            f"dimensions ends in {config.dimensions[-1]}, but {config.model} has {spec.dimension} dimensions"
        )
    window = base.model.config.max_position_embeddings
    longest = max(config.step_range[1], steps) if config.pooling == "refine" else 0
    if config.max_length + longest > window:
        raise InputError(
            f"max_length {config.max_length} plus {longest} steps exceed the window of {config.model}, {window} "
            "positions; reduce max_length"
        )
    return spec


def _adapter_folder(adapter: str) -> Path:
    return (BUNDLED[adapter].adapter if adapter in BUNDLED else None) or Path(adapter)


def _add_adapter(model: Any, config: TrainConfig) -> Any:
    from peft import LoraConfig, PeftModel, get_peft_model

    torch.manual_seed(config.seed)
    if config.adapter is None:
        lora = LoraConfig(
            r=config.rank, lora_alpha=config.alpha, target_modules=list(config.targets), task_type="CAUSAL_LM"
        )
        try:
            return get_peft_model(model, lora)
        except ValueError as error:
            raise InputError(f"cannot add an adapter to {config.model}: {error}") from error
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Found missing adapter keys")
            adapted = PeftModel.from_pretrained(model, str(_adapter_folder(config.adapter)), is_trainable=True)
    except (OSError, ValueError, RuntimeError, UserWarning, SafetensorError) as error:
        raise CheckpointError(f"cannot load the adapter {config.adapter} for training: {error}") from error
    return adapted.float()


def _save_checkpoint(config: TrainConfig, model: Any, batches: Batches, rows_seen: int) -> None:
    rank = next(iter(model.peft_config.values())).r
    with replacing(Path(config.output), "checkpoint") as fresh:
        save_adapter(fresh, model, config.model, revision=batches.spec.base_revision, dtype=torch.bfloat16)
        batches.tokenizer.save_pretrained(fresh)
        save_spec(fresh, batches.spec, config.pooling)
        save_record(fresh, config, batches, rows_seen)
        start = locate(config.model).folder if config.adapter is None else _adapter_folder(config.adapter)
        rotation = Rotation.read(start)
        if rotation is not None and not config.dimensions:  # if trained, the leading components need no rotation
            rotation.write(fresh)
        (fresh / "README.md").write_text(_model_card(config, rank, rows_seen), encoding="utf-8")


def _model_card(config: TrainConfig, rank: int, rows_seen: int) -> str:
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
learning rate {config.learning_rate}, LoRA rank {rank}.
`training.json` beside this file holds the full configuration.

{use}
"""
