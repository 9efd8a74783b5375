"""The captured steps of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.training_h100.common import DEVICE, say
from benchmarks.training_h100.graphed import GraphedStep, Shape
from benchmarks.training_h100.module import build
from gircse_rag.training.batches import Batch
from gircse_rag.training.config import TrainConfig
from gircse_rag.training.losses import icr_loss


class Graphs:
    """One captured step a class of tasks, for one setting of what a graph fixes; runs that differ in the rest share it.

    Args:
        shapes: as `classes` wrote them.
        deep: shapes for K = high of `config.steps` = [low, high], which `share` of the batches take; others take low.
    """

    def __init__(
        self,
        base: Path,
        config: TrainConfig,
        shapes: list[dict[str, Any]],
        deep: list[dict[str, Any]],
        *,
        share: float,
        detached: bool,
        groups: int,
    ) -> None:
        self.module, self.share = build(base, config, groups=groups, detached=detached), share
        self.parameters = [p for p in self.module.parameters() if p.requires_grad]
        for p in self.parameters:
            p.grad = torch.zeros_like(p)
        self.depths = sorted(set(config.step_range))
        self._step_of: dict[tuple[int, str], GraphedStep] = {}
        steps = []
        for k, entries in zip(self.depths, (shapes, deep), strict=False):
            for entry in sorted(entries, key=lambda e: -e["tokens"]):
                step = GraphedStep(
                    self.module,
                    Shape(tuple(entry["counts"]), tuple(entry["widths"])),
                    config.batch_size,
                    k if config.pooling == "refine" else 1,
                    pooling=config.pooling,
                    temperature=config.temperature,
                    reg_weight=config.reg_weight,
                )
                steps.append(step)
                self._step_of.update({(k, task): step for task in entry["tasks"]})
        if DEVICE == "cuda":
            _capture(steps)
        self._limits = {id(s): np.repeat(s.shape.widths, s.shape.counts) for s in steps}
        self.cut = 0

    def restart(self, seed: int) -> None:
        """A fresh adapter, as peft makes it: A uniform in +-1/sqrt(inputs), B zero."""
        torch.manual_seed(seed)
        with torch.no_grad():
            for name, p in self.module.model.named_parameters():
                if p.requires_grad and "lora_A" in name:
                    torch.nn.init.kaiming_uniform_(p, a=5**0.5)
                elif p.requires_grad:
                    p.zero_()

    def __call__(self, batch: Batch) -> Tensor:
        """The step's numbers (loss, regulariser, each L_k, ...); gradients are in the parameters."""
        deep = len(self.depths) > 1 and np.random.default_rng(batch.cursor).random() < self.share
        step = self._step_of[self.depths[int(deep)], batch.rows[0].task]
        order = np.argsort([len(t) for t in batch.texts], kind="stable")
        for rank, limit in enumerate(self._limits[id(step)]):
            text = batch.texts[order[rank]]
            if len(text) > limit:  # a rare long text in a class whose shape was sized on two epochs' batches
                batch.texts[order[rank]] = text[:limit]
                self.cut += 1
        return step(batch.texts, batch.not_negatives).clone()


def _capture(steps: list[GraphedStep]) -> None:
    """The largest first: its memory pool serves all."""
    first = steps[0]
    first.warm_up()
    for step in steps[1:]:
        if step.steps == first.steps:
            step.warm_up()
    torch.cuda.synchronize()
    say("warm", torch.cuda.max_memory_allocated() / 1e9)
    for step in steps:
        step.capture(None if step is first else first.pool)
    say("captured", len(steps), "graphs, GB", torch.cuda.memory_reserved() / 1e9)


def check(graphs: Graphs, batch: Batch, config: TrainConfig) -> None:
    """Says the graph's loss and gradients beside the packed step's, on one batch, with the adapter moved off zero."""
    kept = [p.detach().clone() for p in graphs.parameters]
    with torch.no_grad():
        for p in graphs.parameters:
            p.add_(0.01 * torch.randn_like(p))
    numbers = graphs(batch)
    found = torch.cat([p.grad.flatten() for p in graphs.parameters]).clone()
    for p in graphs.parameters:
        p.grad.zero_()
    states = graphs.module(batch.texts, config.step_range[0], config.pooling)
    b = len(batch.rows)
    right = torch.from_numpy(batch.not_negatives).to(DEVICE)
    loss = icr_loss(states[:b], states[b:], config.temperature, config.reg_weight, not_negatives=right)
    loss.total.backward()
    expected = torch.cat([p.grad.flatten() for p in graphs.parameters])
    error, norm = float((found - expected).norm() / expected.norm()), float(expected.norm())
    packed = [round(float(loss.total), 4), [round(x, 4) for x in loss.stepwise.tolist()]]
    say(
        f"check: graph {[round(x, 4) for x in numbers.tolist()]} packed {packed} gradient relative error {error:.4f}, "
        f"norm {norm:.4f}"
    )
    with torch.no_grad():
        for p, value in zip(graphs.parameters, kept, strict=True):
            p.copy_(value)
