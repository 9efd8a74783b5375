"""The training loop: batches in a fixed order, ICR loss, AdamW on the adapter, states that survive kill -9.

Runs alone, or under `accelerate launch` on several processes: each refines its share of a batch's rows, the hidden
states are gathered, and every process computes the same loss over the whole batch. The loss is differentiated with
respect to the states first; each share then carries its rows' gradients through the model, all at once or in chunks
(gradient caching): that is what lets a batch be larger than memory.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gircse_rag.errors import CheckpointError, InputError
from gircse_rag.training.batches import Batch, Batches
from gircse_rag.training.config import TrainConfig
from gircse_rag.training.losses import IcrLoss, icr_loss
from gircse_rag.training.saving import find_state, load_state, save_state
from gircse_rag.training.soft_token_watch import SoftTokenWatch
from gircse_rag.training.unrolled import UnrolledRefinement


class Trainer:
    """One run over `batches`.

    Args:
        module: the model with its adapter, on its device.
        batches: the rows, with the config's batch size and seed.
        config: everything else.
        accelerator: an `accelerate.Accelerator` when there are several processes.
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
            raise InputError("the model has no trainable parameter; put a LoRA adapter on it first")
        if accelerator is not None:
            batches.check_shares(accelerator.num_processes)
        self.module = module
        fused = self.parameters[0].is_cuda
        self.optimizer: Any = torch.optim.AdamW(
            self.parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=fused
        )
        self.runner: Any = module
        self.deepspeed = accelerator is not None and accelerator.distributed_type == "DEEPSPEED"
        if self.deepspeed and config.chunk_tokens is not None:
            raise InputError(
                "chunk_tokens needs several backward passes a step, which DeepSpeed takes for several steps"
            )
        if accelerator is not None:
            self.runner, self.optimizer = accelerator.prepare(module, self.optimizer)
        self.cursor = 0

    def resume(self, folder: str | Path) -> None:
        """Go on from a saved state: adapter, optimiser and cursor.

        Raises:
            CheckpointError: the folder holds no whole state, or one of another order of rows; or under DeepSpeed, which
                keeps copies of the weights that would undo the loading.
        """
        if self.deepspeed:
            raise CheckpointError(
                f"a run under DeepSpeed cannot be resumed: give `adapter: {folder}/state` and another output folder"
            )
        self.cursor = load_state(Path(folder), self.module.model, self.optimizer, self.config, self.batches)

    def run(self) -> None:
        """Train until `config.rows` rows have been seen; saves every `config.save_rows`, and at the end.

        Raises:
            GircseError: the loss is not finite (the last saved state is kept); the message says which batch.
        """
        saved = self.cursor
        for batch in self.batches.start(self.cursor):
            if self.cursor >= self.config.rows:
                break
            self._log(self.step(batch))
            if self.cursor - saved >= self.config.save_rows:
                self.save()
                saved = self.cursor
        if self.cursor > saved:
            self.save()

    def step(self, batch: Batch) -> dict[str, Any]:
        """One optimiser step. Returns the log record: each L_k, the regulariser, gradient norm, what its
        soft tokens look like (`SoftTokenWatch`), rows a second.
        """
        begun, first = time.perf_counter(), batch.cursor - len(batch.rows)
        rate = self.config.rate(first)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        steps = self._steps(first)
        self.module.on_soft_token = watch = SoftTokenWatch()
        loss = self._backward(batch, steps)
        clip = torch.nn.utils.clip_grad_norm_ if self.accelerator is None else self.accelerator.clip_grad_norm_
        norm = torch.as_tensor(clip(self.parameters, self.config.max_gradient), device=loss.total.device)
        # one transfer: each would wait for the device
        numbers = torch.cat(
            (torch.stack((loss.total, loss.regularization, norm)).detach(), loss.stepwise.detach())
        ).tolist()
        if not np.isfinite(numbers).all():
            state = find_state(Path(self.config.output))
            kept = "nothing had been saved yet" if state is None else f"the last good state is {state}"
            raise InputError(
                f"the loss or its gradient is not finite in the batch of rows {first}..{batch.cursor} "
                f"(task {batch.rows[0].task}): training stopped before this step; {kept}; lower learning_rate, or look "
                "at these rows"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.cursor = batch.cursor
        total, regularization, norm, *stepwise = numbers
        return {
            "cursor": batch.cursor,
            "task": batch.rows[0].task,
            "rows": len(batch.rows),
            "loss": total,
            "stepwise": stepwise,
            "regularization": regularization,
            "gradient_norm": norm,
            "learning_rate": rate,
            **{f"soft_{key}": value for key, value in watch.record().items()},
            "rows_per_second": len(batch.rows) / (time.perf_counter() - begun),
        }

    def save(self) -> None:
        """Write adapter and resumable state; the folder is replaced by one rename, never half-written."""
        if self.accelerator is None or self.accelerator.is_main_process:
            folder = Path(self.config.output)
            save_state(folder, self.module.model, self.optimizer, self.config, self.batches, self.cursor)
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()

    def temperature(self, task: str) -> float:
        """Of the loss of a batch of `task`, which a subclass may choose for some."""
        return self.config.temperature

    def objective(self, batch: Batch, states: Tensor) -> IcrLoss:
        """The loss of the whole batch, which a subclass may add to: `train` takes it as `trainer`.

        Args:
            batch: what was refined.
            states: (len(batch.texts), K, d), h_1..h_K of its texts in their order, with gradients.
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

    def _backward(self, batch: Batch, steps: int) -> IcrLoss:
        """Gradients of the whole batch's loss into the adapter."""
        world, rank = (
            (1, 0) if self.accelerator is None else (self.accelerator.num_processes, self.accelerator.process_index)
        )
        chunks = token_chunks(batch.texts, range(rank, len(batch.texts), world), self.config.chunk_tokens)
        whole = len(chunks) == 1
        with nullcontext() if whole else torch.no_grad():
            parts = [self._states(batch, part, steps) for part in chunks]
        states = self._gather(torch.cat([part.detach() for part in parts]), len(batch.texts)).requires_grad_()
        loss = self.objective(batch, states)
        (gradient,) = torch.autograd.grad(loss.total, states)
        # DistributedDataParallel averages over processes; the whole batch's gradient is the sum of the shares.
        gradient = gradient * world
        for index, part in enumerate(chunks):
            last = index == len(chunks) - 1
            with nullcontext() if last or self.accelerator is None else self.accelerator.no_sync(self.runner):
                again = parts[0] if whole else self._states(batch, part, steps)
                share = (again * gradient[part].to(again.dtype)).sum()  # its gradient is this share's of the loss
                if self.accelerator is None:
                    share.backward()  # type: ignore[no-untyped-call]
                else:
                    self.accelerator.backward(share)
        return loss

    def _states(self, batch: Batch, part: list[int], steps: int) -> Tensor:
        states: Tensor = self.runner([batch.texts[i] for i in part], steps, self.config.pooling)
        return states

    def _gather(self, states: Tensor, total: int) -> Tensor:
        """(m, K, d) of this process's texts r, r + world, ... -> (total, K, d) of all, in batch order."""
        if self.accelerator is None or self.accelerator.num_processes == 1:
            return states
        world = self.accelerator.num_processes
        longest = -(-total // world)
        padded = torch.cat((states, states.new_zeros(longest - len(states), *states.shape[1:])))
        gathered: Tensor = self.accelerator.gather(padded)
        return gathered.view(world, longest, *states.shape[1:]).transpose(0, 1).reshape(-1, *states.shape[1:])[:total]

    def _steps(self, cursor: int) -> int:
        low, high = self.config.step_range if self.config.pooling == "refine" else (1, 1)
        return int(np.random.default_rng((self.config.seed, cursor)).integers(low, high + 1))

    def _log(self, record: dict[str, Any]) -> None:
        if self.accelerator is not None and not self.accelerator.is_main_process:
            return
        folder = Path(self.config.output)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / "log.jsonl").open("a+b") as file:
                if file.tell() and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n":
                    file.write(b"\n")  # a kill tore the last line
                file.write(json.dumps(record).encode() + b"\n")
        except OSError as error:
            raise CheckpointError(f"could not write {folder / 'log.jsonl'}: {error}") from error
        if self.on_step is not None:
            self.on_step(record)


def token_chunks(texts: Sequence[Sequence[int]], mine: Sequence[int], limit: int | None) -> list[list[int]]:
    """Cut the texts number `mine` into runs of at most `limit` tokens (or of one text)."""
    if limit is None:
        return [list(mine)]
    chunks: list[list[int]] = [[]]
    room = limit
    for index in mine:
        room -= len(texts[index])
        if room < 0 and chunks[-1]:
            chunks.append([])
            room = limit - len(texts[index])
        chunks[-1].append(index)
    return chunks


def read_log(folder: str | Path) -> Iterator[dict[str, Any]]:
    """The log records of a run; where a resumed run repeated rows, the later record counts."""
    records = {}
    for line in (Path(folder) / "log.jsonl").read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:  # a kill tore it; the resumed run has logged those rows again
            continue
        records[record["cursor"]] = record
    return iter(sorted(records.values(), key=lambda record: int(record["cursor"])))
