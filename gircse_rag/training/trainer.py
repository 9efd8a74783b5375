"""The training loop: batches in a fixed order, ICR loss, AdamW on the adapter, states that survive kill -9.

Runs in one process, or in several under `accelerate launch`. Each process refines its share of a batch's texts; the
hidden states are gathered, and every process computes the same loss over the whole batch. First the loss is
differentiated with respect to the states. Then each process propagates its share of these gradients through the model,
in one pass or in chunks (gradient caching), so a batch may be larger than memory allows in one pass.
"""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gircse_rag.errors import CheckpointError, GircseWarning, InputError
from gircse_rag.training.batches import Batch, Batches
from gircse_rag.training.config import TrainConfig
from gircse_rag.training.lexical import ContentWords, lexical_loss
from gircse_rag.training.losses import IcrLoss, icr_loss
from gircse_rag.training.packing import token_chunks
from gircse_rag.training.saving import find_state, load_state, save_state
from gircse_rag.training.soft_token_watch import SoftTokenWatch
from gircse_rag.training.teacher import Teacher, teacher_loss
from gircse_rag.training.unrolled import UnrolledRefinement


class Trainer:
    """Train `module` on `batches`.

    Args:
        module: the model with its adapter, on its device.
        batches: the training rows, with the config's batch size and seed.
        config: all other settings.
        accelerator: an `accelerate.Accelerator` if there are several processes.
        on_step: called with each log record (main process).
    """

    def __init__(
        self,
        module: UnrolledRefinement,
        batches: Batches,
        config: TrainConfig,
        *,
        accelerator: Any = None,
        on_step: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self.config, self.batches, self.accelerator, self.on_step = config, batches, accelerator, on_step
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        if not self.parameters:
            raise InputError("the model has no trainable parameter; add a LoRA adapter first")
        self._world, self._rank, self._main = 1, 0, True
        if accelerator is not None:
            self._world, self._rank = accelerator.num_processes, accelerator.process_index
            self._main = accelerator.is_main_process
            batches.check_shares(self._world)
        self.module = module
        fused = self.parameters[0].is_cuda
        self.optimizer: Any = torch.optim.AdamW(
            self.parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=fused
        )
        self.content_words = (
            ContentWords(batches.rows, batches.tokenizer, len(module.head), config.lexical_words)
            if config.supervised
            else None
        )
        self.teacher = None
        if config.teacher is not None:
            self.teacher = Teacher(config.teacher, batches.rows, self.parameters[0].device)
        self.runner: Any = module
        self.deepspeed = accelerator is not None and accelerator.distributed_type == "DEEPSPEED"
        if self.deepspeed and config.chunk_tokens is not None:
            raise InputError(
                "chunk_tokens needs several backward passes per step, but DeepSpeed takes a step after each; "
                "remove chunk_tokens"
            )
        if accelerator is not None:
            self.runner, self.optimizer = accelerator.prepare(module, self.optimizer)
        self.cursor = self.skipped = 0

    def resume(self, folder: str | Path) -> None:
        """Restore a saved state: adapter, optimiser and cursor.

        Raises:
            CheckpointError: the folder holds no complete state, or its order of rows differs; or under DeepSpeed, which
                keeps copies of the weights that would overwrite the loaded ones.
        """
        if self.deepspeed:
            raise CheckpointError(
                f"a run under DeepSpeed cannot be resumed: set `adapter: {folder}/state` and another output folder"
            )
        self.cursor = load_state(Path(folder), self.module.model, self.optimizer, self.config, self.batches)

    def run(self) -> None:
        """Train on rows up to `config.rows`; save every `config.save_rows` rows, and at the end.

        The first text that is longer than `max_length` causes a GircseWarning; the log counts all of them.

        Raises:
            GircseError: the loss is not finite; the message names the batch. The last saved state is kept.
        """
        saved, warned = self.cursor, not self._main
        for batch in self.batches.start(self.cursor, self.config.rows):
            if batch.truncated and not warned:
                warned = True
                warnings.warn(
                    f"texts are cut at {self.batches.spec.max_length} tokens (max_length); the first is "
                    f"{batch.describe_text(batch.truncated[0])}; log.jsonl counts them per batch (truncated)",
                    GircseWarning,
                    stacklevel=2,
                )
            self._write_log(self.step(batch))
            if self.cursor - saved >= self.config.save_rows:
                self.save()
                saved = self.cursor
        if self.cursor > saved:
            self.save()

    def step(self, batch: Batch) -> dict[str, Any]:
        """Take one optimiser step.

        Returns the log record: losses, gradient norm, statistics of soft tokens (`SoftTokenWatch`), rows per second.
        Supervised soft tokens add `lexical` (nats) and `lexical_skipped`, the number of texts without a target. A
        teacher adds `teacher` (nats) in batches that it judges.
        """
        begun, first = time.perf_counter(), batch.cursor - len(batch.rows)
        rate = self.config.rate(first)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        steps = self._draw_steps(first)
        self.module.on_soft_token = watch = SoftTokenWatch()
        loss, extra = self._backward(batch, steps)
        clip = torch.nn.utils.clip_grad_norm_ if self.accelerator is None else self.accelerator.clip_grad_norm_
        norm = torch.as_tensor(clip(self.parameters, self.config.max_gradient), device=loss.total.device)
        # one transfer for all numbers: each transfer waits for the device
        numbers = torch.cat(
            (torch.stack((loss.total, loss.regularization, norm, *extra.values())).detach(), loss.stepwise.detach())
        ).tolist()
        if not np.isfinite(numbers).all():
            state = find_state(Path(self.config.output))
            last_state = "no state has been saved yet" if state is None else f"the last good state is {state}"
            raise InputError(
                f"the loss or its gradient is not finite in the batch of rows {first}..{batch.cursor} "
                f"(task {batch.rows[0].task}): training stopped before this step; {last_state}; reduce "
                "learning_rate, or check these rows"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.cursor = batch.cursor
        total, regularization, norm, *rest = numbers
        values, stepwise = rest[: len(extra)], rest[len(extra) :]
        return {
            "cursor": batch.cursor,
            "task": batch.rows[0].task,
            "rows": len(batch.rows),
            "texts": len(batch.texts),
            "truncated": len(batch.truncated),
            "loss": total,
            "stepwise": stepwise,
            "regularization": regularization,
            **dict(zip(extra, values, strict=True)),
            **({"lexical_skipped": self.skipped} if self.content_words is not None else {}),
            "gradient_norm": norm,
            "learning_rate": rate,
            **{f"soft_{key}": value for key, value in watch.record().items()},
            "rows_per_second": len(batch.rows) / (time.perf_counter() - begun),
        }

    def save(self) -> None:
        """Save adapter and resumable state atomically."""
        if self._main:
            folder = Path(self.config.output)
            save_state(folder, self.module.model, self.optimizer, self.config, self.batches, self.cursor)
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()

    def temperature(self, task: str) -> float:
        """Temperature of the loss for batches of `task`; a subclass may override it."""
        return self.config.temperature

    def objective(self, batch: Batch, states: Tensor) -> IcrLoss:
        """Compute the loss of the whole batch. Subclasses may override it; pass them to `train(trainer=...)`.

        Args:
            batch: the refined batch.
            states: (len(batch.texts), K, d), the pooled states of its texts in their order: h_1..h_K, or h_0..h_{K-1}
                if the spec pools the prompt (LaSER); requires grad.
        """
        queries = len(batch.rows)
        return icr_loss(
            states[:queries],
            states[queries:],
            self.temperature(batch.rows[0].task),
            self.config.reg_weight,
            targets=torch.from_numpy(batch.targets).to(states.device),
            false_negatives=torch.from_numpy(batch.false_negatives).to(states.device),
            near_equal=self.config.near_equal,
            symmetric=self.config.symmetric,
            dimensions=self.config.dimensions,
        )

    def supervise(self, batch: Batch, states: Tensor) -> Tensor:
        """Compute the lexical loss of the whole batch.

        Args:
            batch: the refined batch.
            states: (len(batch.texts), K, d), h_0..h_{K-1} of its texts in their order; requires grad.
        """
        assert self.content_words is not None
        token_ids, weights = (part.to(states.device) for part in self.content_words.targets(batch))
        self.skipped = int((weights.sum(dim=1) == 0).sum())
        return lexical_loss(
            states,
            self.module.head,
            token_ids,
            weights,
            temperature=self.config.lexical_temperature,
            prefixes=self.config.lexical_prefixes,
        )

    def distil(self, batch: Batch, states: Tensor) -> Tensor:
        """Compute the divergence of the whole batch from the teacher; `states` as in `objective`."""
        assert self.teacher is not None
        queries = len(batch.rows)
        return teacher_loss(
            states[:queries],
            states[queries:],
            self.teacher.similarities(batch).to(states.device),
            temperature=self.temperature(batch.rows[0].task),
            teacher_temperature=self.config.teacher_temperature,
        )

    def _backward(self, batch: Batch, steps: int) -> tuple[IcrLoss, dict[str, Tensor]]:
        """Compute the loss of the whole batch and accumulate its gradients in the adapter.

        Returns the loss, and by name the further scalars in its total, without their weights.
        """
        mine = range(self._rank, len(batch.texts), self._world)
        chunks = token_chunks(batch.texts, mine, self.config.chunk_tokens)
        single = len(chunks) == 1
        with nullcontext() if single else torch.no_grad():
            parts = [self._refine(batch, part, steps) for part in chunks]
        states = self._gather(torch.cat([part.detach() for part in parts]), len(batch.texts)).requires_grad_()
        pools_prompt = self.batches.spec.pools_prompt
        pooled = states if pools_prompt or self.content_words is None else states[:, 1:]  # without h_0
        loss = self.objective(batch, pooled)
        total, extra = loss.total, {}
        if self.content_words is not None:
            extra["lexical"] = self.supervise(batch, states[:, :steps])
            total = total + self.config.weigh_lexical(batch.cursor - len(batch.rows)) * extra["lexical"]
        if self.teacher is not None and self.batches.tasks[batch.rows[0].task].teacher:
            extra["teacher"] = self.distil(batch, pooled)
            total = total + self.config.teacher_weight * extra["teacher"]
        loss = replace(loss, total=total)
        (gradient,) = torch.autograd.grad(loss.total, states)
        # DistributedDataParallel averages gradients over processes; the batch's gradient is their sum.
        gradient = gradient * self._world
        for index, part in enumerate(chunks):
            last = index == len(chunks) - 1
            with nullcontext() if last or self.accelerator is None else self.accelerator.no_sync(self.runner):
                refined = parts[0] if single else self._refine(batch, part, steps)
                share = (refined * gradient[part].to(refined.dtype)).sum()  # surrogate with the loss's gradient
                if self.accelerator is None:
                    share.backward()  # type: ignore[no-untyped-call]
                else:
                    self.accelerator.backward(share)
        return loss, extra

    def _refine(self, batch: Batch, part: list[int], steps: int) -> Tensor:
        texts, spec = [batch.texts[i] for i in part], self.batches.spec
        if self.config.pooling == "refine":
            steps = spec.num_soft_tokens(steps)
        prompt_state = spec.pools_prompt or self.content_words is not None
        states: Tensor = self.runner(texts, steps, self.config.pooling, prompt_state)
        return states

    def _gather(self, states: Tensor, total: int) -> Tensor:
        """Gather all processes' states: (m, K, d) of texts r, r + world, ... -> (total, K, d) in batch order."""
        if self._world == 1:
            return states
        longest = -(-total // self._world)
        padded = torch.cat((states, states.new_zeros(longest - len(states), *states.shape[1:])))
        gathered: Tensor = self.accelerator.gather(padded)
        return gathered.view(self._world, longest, *states.shape[1:]).transpose(0, 1).flatten(0, 1)[:total]

    def _draw_steps(self, cursor: int) -> int:
        low, high = self.config.step_range if self.config.pooling == "refine" else (1, 1)
        return int(np.random.default_rng((self.config.seed, cursor)).integers(low, high + 1))

    def _write_log(self, record: dict[str, Any]) -> None:
        if not self._main:
            return
        folder = Path(self.config.output)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / "log.jsonl").open("a+b") as file:
                if file.tell() and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n":
                    file.write(b"\n")  # a kill cut off the last line
                file.write(json.dumps(record).encode() + b"\n")
        except OSError as error:
            raise CheckpointError(f"could not write {folder / 'log.jsonl'}: {error}") from error
        if self.on_step is not None:
            self.on_step(record)
