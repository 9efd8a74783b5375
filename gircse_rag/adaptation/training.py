"""Train on a user's rows, watch validation questions and probes, and keep the best weights.

    every `check_rows` rows   nDCG@10 of the validation questions, rank correlation of the probes
    stop                      two checks without a better nDCG, the time is up, or the probes fall too far
    at the end                the best weights, or their mean with the original ones, whichever validation prefers

The mean of original and adapted LoRA matrices keeps most of the gain and forgets less (WiSE-FT, arXiv 2109.01903).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gircse_rag.adaptation.probes import REHEARSAL, rank_correlation
from gircse_rag.adaptation.scoring import mean_ndcg
from gircse_rag.adaptation.validation import Validation
from gircse_rag.errors import CheckpointError
from gircse_rag.files import atomic_write
from gircse_rag.refinement import pool as pool_states
from gircse_rag.training.batches import Batch
from gircse_rag.training.losses import IcrLoss
from gircse_rag.training.packing import token_chunks
from gircse_rag.training.trainer import Trainer

BEST, CHOSEN = "best.safetensors", "chosen.json"
"""The best weights so far, and the result of a finished training, in the working folder."""
PATIENCE = 2
"""Checks without a better validation score before training stops."""
TEACHER_WEIGHT = 5.0
"""Weight of the squared difference between the similarities of rehearsed sentences and the original model's."""
SHARES = (1.0, 0.5)
"""Shares of the adapted weights among which validation chooses at the end; the rest are original weights."""
CHUNK_TOKENS = 4096
"""Tokens per forward pass of a check."""


@dataclass(frozen=True)
class Check:
    """Scores of one check: rows seen, share of the adapted weights, nDCG@10, and the probes' rank correlation."""

    rows: int
    share: float
    ndcg: float
    probes: float


@dataclass(frozen=True)
class Limits:
    """When to check and when to stop.

    Attributes:
        check_rows: rows between two checks.
        seconds: time for training and checks, over all starts of a killed run; None for no limit.
        max_fall: largest fall of the probes' correlation.
    """

    check_rows: int
    seconds: float | None
    max_fall: float


class AdaptTrainer(Trainer):
    """A `Trainer` with checks, early stopping and a teacher for rehearsed sentences.

    Attributes:
        folder: keeps checks.json and the best weights, so that a killed run goes on.
        validation, limits: see there.
    """

    folder: Path
    validation: Validation
    limits: Limits

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.module.release_base()  # half a gigabyte of SmolLM2-135M
        self._original = self._weights()
        self._seconds = 0.0
        self.checks: list[Check] = []
        self.chosen: Check | None = None

    def run(self) -> None:
        """Train with checks, then set the chosen weights. The state is saved at every check.

        Raises:
            GircseError: the loss is not finite, or a file cannot be written.
        """
        self._load_checks()
        if not self.checks:
            self._check()
            self._save_checks()
        started = time.perf_counter() - self._seconds
        if not self._finished():
            for batch in self.batches.start(self.cursor):
                self._write_log(self.step(batch))
                self._seconds = time.perf_counter() - started
                late = self.limits.seconds is not None and self._seconds > self.limits.seconds
                if (
                    self.cursor - self.checks[-1].rows >= self.limits.check_rows
                    or late
                    or self.cursor >= self.config.rows
                ):
                    self._check()
                    self._seconds = time.perf_counter() - started
                    self.save()
                    self._save_checks()
                    if self._finished():
                        break
        self._choose()

    def objective(self, batch: Batch, states: Tensor) -> IcrLoss:
        """ICR loss; for rehearsed sentences also the original model's similarities."""
        loss = super().objective(batch, states)
        if batch.rows[0].task != REHEARSAL:
            return loss
        with torch.no_grad(), self._set(self._original):
            taught = pool_states(self._embed(batch.texts, states.shape[1]))[:, -1]
        own = pool_states(states)[:, -1]
        difference = (own @ own.T - taught @ taught.T).square().mean()
        return replace(loss, total=loss.total + TEACHER_WEIGHT * difference)

    def _finished(self) -> bool:
        """Whether training is over, from the checks alone."""
        best = max(range(len(self.checks)), key=lambda index: self.checks[index].ndcg)
        return (
            self.cursor >= self.config.rows
            or (len(self.checks) > 1 and len(self.checks) - 1 - best >= PATIENCE)
            or (self.limits.seconds is not None and self._seconds > self.limits.seconds)
            or self._forgot(self.checks[-1])
        )

    def _forgot(self, check: Check) -> bool:
        return check.probes < self.checks[0].probes - self.limits.max_fall

    def _check(self) -> None:
        check = self._score(1.0)
        best = max((c.ndcg for c in self.checks if not self._forgot(c)), default=-1.0)
        self.checks.append(check)
        if check.ndcg > best and not self._forgot(check):
            weights = {str(i): weight.contiguous() for i, weight in enumerate(self._weights())}
            with _writing(self.folder / BEST) as scratch:
                save_file(weights, scratch)

    def _choose(self) -> None:
        """Set the weights that validation prefers among the best ones, their means with the original, and the original.

        A tie goes to more original weights.
        """
        stored = load_file(self.folder / BEST)
        best = [stored[str(i)] for i in range(len(stored))]
        self.chosen = replace(self.checks[0], share=0.0)
        tried = []
        for share in sorted(SHARES):
            mixed = [a + share * (b - a) for a, b in zip(self._original, best, strict=True)]
            with self._set(mixed):
                check = self._score(share)
            tried.append(check)
            if check.ndcg > self.chosen.ndcg and not self._forgot(check):
                self.chosen = check
        share = self.chosen.share
        self._copy([a + share * (b - a) for a, b in zip(self._original, best, strict=True)])
        record = {
            "chosen": asdict(self.chosen),
            "original": asdict(self.checks[0]),
            "tried": [asdict(c) for c in tried],
        }
        with _writing(self.folder / CHOSEN) as scratch:
            scratch.write_text(json.dumps(record), encoding="utf-8")

    def _score(self, share: float) -> Check:
        steps = self.config.step_range[1]
        data = self.validation
        with torch.no_grad():
            parts = [
                pool_states(self._embed(texts, steps))[:, -1].float().cpu().numpy()
                for texts in (data.queries, data.passages, data.first, data.second)
            ]
        queries, passages, first, second = parts
        similarities = np.einsum("nd,nd->n", first, second)
        ndcg = mean_ndcg(queries @ passages.T, data.relevant)
        return Check(self.cursor, share, ndcg, rank_correlation(similarities, data.grades))

    def _embed(self, texts: Sequence[Sequence[int]], steps: int) -> Tensor:
        """Refine texts without gradients: (n, K, d)."""
        watch, self.module.on_soft_token = self.module.on_soft_token, None
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        states: Tensor | None = None
        for part in token_chunks(texts, order, CHUNK_TOKENS):
            refined = self.module([list(texts[i]) for i in part], steps).float()
            if states is None:
                states = refined.new_empty(len(texts), *refined.shape[1:])
            states[part] = refined
        self.module.on_soft_token = watch
        assert states is not None
        return states

    def _weights(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.parameters]

    def _copy(self, weights: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for parameter, weight in zip(self.parameters, weights, strict=True):
                parameter.copy_(weight)

    @contextmanager
    def _set(self, weights: Sequence[Tensor]) -> Iterator[None]:
        """Use other weights in a `with` block.

        Tensors are exchanged, not overwritten: a graph that waits for its backward pass keeps its own.
        """
        own = [parameter.data for parameter in self.parameters]
        for parameter, weight in zip(self.parameters, weights, strict=True):
            parameter.data = weight
        try:
            yield
        finally:
            for parameter, weight in zip(self.parameters, own, strict=True):
                parameter.data = weight

    def _save_checks(self) -> None:
        record = {"seconds": self._seconds, "checks": [asdict(check) for check in self.checks]}
        with _writing(self.folder / "checks.json") as scratch:
            scratch.write_text(json.dumps(record), encoding="utf-8")

    def _load_checks(self) -> None:
        """Read the checks up to the resumed state; a kill between state and checks repeats one check."""
        try:
            record = json.loads((self.folder / "checks.json").read_text())
        except OSError:
            return
        self._seconds = float(record["seconds"])
        self.checks = [Check(**check) for check in record["checks"] if check["rows"] <= self.cursor]


@contextmanager
def _writing(path: Path) -> Iterator[Path]:
    """Write a file atomically.

    Raises:
        CheckpointError: it cannot be written, for example on a full disk.
    """
    try:
        with atomic_write(path) as scratch:
            yield scratch
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"could not write {path}: {error}; free some disk space and run again") from error
