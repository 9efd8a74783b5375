"""Engine: schedules rows, runs the model and pools hidden states. Not thread-safe; backends/paged.py serialises calls.

With many sequences, refinement is sequential: one forward makes h_k and s_{k+1} of all of them. With one or two, a
forward costs mostly the reading of the weights, so fewer forwards are faster. Such sequences refine all K positions
together by Jacobi iteration (sweeps.py).
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gircse_rag.backend import NOT_FINITE, Refinement
from gircse_rag.engine.block_manager import BlockManager
from gircse_rag.engine.model_runner import ModelRunner
from gircse_rag.engine.scheduler import Scheduler
from gircse_rag.engine.sequence import Sequence
from gircse_rag.engine.sweeps import Drafts, advance
from gircse_rag.errors import GircseError
from gircse_rag.refinement import pool, settled

# Sequences sweep only while at most this many are under way, with at most this many output rows in total. Time relative
# to sequential, bfloat16, one CPU thread: K=5 with 1, 4, 8, 16 concurrent queries 0.57, 1.04, 1.26, 1.17 (all wait for
# the slowest to settle); K=20 with 1, 2 queries 0.45, 0.48; K=20 with 4 queries, two of them sweeping, 1.54.
MAX_SWEEP_SEQUENCES = 2
MAX_SWEEP_ROWS = 48

# Positions settled per sweep (running mean) below which the engine stops sweeping for good. Time relative to sequential
# refinement, one query, one CPU thread. bfloat16: 0.57 at 1.9 positions, 1.00 at 1.0. float32 (Zen 3), where the extra
# rows of a sweep are not free: 0.75 at 2.1, 1.33 at 1.6, 1.30 at 1.0. With a float32 bound of 1.8, a model that settles
# 1.6 stops sweeping only after fourteen queries.
MIN_SETTLED, MIN_SETTLED_FLOAT32 = 1.4, 2.0
INITIAL_MARGIN = 0.6  # initial running mean minus the bound: a model is presumed to settle well

MIN_SWEEP_STEPS = 4  # smallest K that sweeps: with fewer steps hardly a forward can be saved

Outcome = tuple[Sequence, Refinement | GircseError]


@dataclass(frozen=True)
class EngineStats:
    """State and totals of an engine after its last step.

    Attributes:
        running: number of sequences that hold KV blocks.
        waiting: number of sequences that wait for admission.
        steps: number of forwards.
        rows: number of rows computed: prompt tokens and soft tokens.
        prefix_hits: number of prompt tokens taken from the prefix cache instead.
        preemptions: how often a sequence returned its blocks before it was finished.
        used_blocks: number of KV blocks that running sequences hold.
        num_blocks: number of KV blocks that sequences may hold.
    """

    running: int = 0
    waiting: int = 0
    steps: int = 0
    rows: int = 0
    prefix_hits: int = 0
    preemptions: int = 0
    used_blocks: int = 0
    num_blocks: int = 0


class Engine:
    """Turns sequences into refinements, one forward per `step`.

    Args:
        runner: runs the model over `blocks`' cache.
        blocks: assigns KV blocks to sequences.
        token_budget: maximum rows per forward.
        max_running: maximum number of sequences that hold blocks at once.
        pools_prompt: pool h_0 too (LaSER); sequences then need one soft token less for as many pooled states.
        shared_budget: maximum rows per forward while queries and a bulk share it, see `Scheduler`.
        sweeping: allow parallel sweeps. False with float16 weights: one row costs so little there that six rows cost
            three times as much, and K=5 would take 1.15 of the sequential time (AVX2, one thread).

    Attributes:
        scheduler: where callers add and cancel sequences; each must fit the cache and the model's window.
        undelivered: completed sequences, each with its result or its own error; the caller removes what it delivers.
            After an interrupt a sequence may appear twice: the first entry counts.
        stats: state and totals after the last step. Replaced as a whole, so other threads may read it.
    """

    def __init__(
        self,
        runner: ModelRunner,
        blocks: BlockManager,
        *,
        token_budget: int,
        max_running: int,
        pools_prompt: bool = False,
        shared_budget: int | None = None,
        sweeping: bool = True,
    ) -> None:
        self.runner = runner
        self._first_pooled = 0 if pools_prompt else 1  # h_0 or h_1
        self.sweeping = sweeping
        self.scheduler = Scheduler(
            blocks, token_budget=token_budget, max_running=max_running, shared_budget=shared_budget
        )
        self.undelivered: deque[Outcome] = deque()
        self._num_steps = self._num_rows = 0
        self.stats = self._count()
        self._drafts = Drafts()
        self._min_settled = MIN_SETTLED_FLOAT32 if runner.dtype == torch.float32 else MIN_SETTLED
        self._settled_per_sweep = self._min_settled + INITIAL_MARGIN  # running mean

    @torch.inference_mode()
    def step(self) -> None:
        """Run one forward and append completed sequences to `undelivered`. An exception fails all sequences."""
        try:
            self._step()
        except Exception as error:
            self.fail(error)
        self.stats = self._count()

    def fail(self, error: BaseException) -> None:
        """End every sequence with `error` and leave the engine empty and usable."""
        failure = GircseError(f"the forward pass failed: {type(error).__name__}: {error}")
        failure.__cause__ = error
        self.undelivered.extend((sequence, failure) for sequence in self.scheduler.drain())

    def _count(self) -> EngineStats:
        scheduler, blocks = self.scheduler, self.scheduler.blocks
        usable = blocks.num_blocks - 1  # without the zero block
        return EngineStats(
            running=len(scheduler.running),
            waiting=scheduler.num_waiting,
            steps=self._num_steps,
            rows=self._num_rows,
            prefix_hits=blocks.num_hits,
            preemptions=scheduler.num_preemptions,
            used_blocks=usable - blocks.num_available,
            num_blocks=usable,
        )

    def _step(self) -> None:
        self._assign_drafts()
        chunks = self.scheduler.schedule()
        if not chunks:
            return
        self._num_steps += 1
        self._num_rows += sum(chunk.num_rows for chunk in chunks)
        outputs = self.runner.forward(chunks)
        ended = [chunk.sequence for chunk in chunks if chunk.is_last]
        for sequence, num_rows in chunks:
            sequence.num_cached += num_rows
        if not ended:
            return
        states = torch.split(outputs, [sequence.num_outputs for sequence in ended])
        finished: list[Sequence] = []
        refining: dict[int, list[tuple[Sequence, Tensor]]] = defaultdict(list)
        for sequence, hidden in zip(ended, states, strict=True):
            if len(hidden) == 1:
                sequence.states.append(hidden[0])
            if sequence.is_refined or self._has_settled(sequence):
                finished.append(sequence)
            else:
                refining[sequence.top_k].append((sequence, hidden))
        for top_k, members in refining.items():
            self._refine(members, top_k)
            finished += [sequence for sequence, _ in members if sequence.is_refined]
        self._finish(finished)

    def _refine(self, members: list[tuple[Sequence, Tensor]], top_k: int) -> None:
        """Make each member's next soft tokens: one, or in a sweep one per open position except the first."""
        sources = [hidden if len(hidden) == 1 else hidden[:-1] for _, hidden in members]
        token = self.runner.soft_tokens(torch.cat(sources), top_k)
        soft = torch.split(token.embedding, [len(source) for source in sources])
        for (sequence, hidden), tokens in zip(members, soft, strict=True):
            if len(hidden) > 1:
                self._apply_sweep(sequence, hidden, tokens)
            elif self._can_sweep(sequence) and self._fits_in_sweep(sequence.steps - 1):
                drafts = self._drafts.tokens(sequence.steps, tokens.dtype) or [tokens[0]] * sequence.steps
                sequence.soft = [tokens[0], *drafts[1:]]
            else:
                sequence.soft.append(tokens[0])
        if token.token_ids is not None and token.weights is not None:  # never in a sweep
            rows = zip(members, token.token_ids.tolist(), token.weights.tolist(), strict=True)
            for (sequence, _), ids, weights in rows:
                sequence.top_tokens.append(list(zip(ids, weights, strict=True)))

    def _assign_drafts(self) -> None:
        """Give waiting sequences drafts if all sequences may sweep: the prefill is then the first sweep."""
        if not self.scheduler.num_waiting or not self._fits_in_sweep(0):
            return
        candidates = [sequence for sequence in self.scheduler.waiting() if self._can_sweep(sequence)]
        if self._fits_in_sweep(sum(sequence.steps for sequence in candidates)):
            for sequence in candidates:
                sequence.soft = self._drafts.tokens(sequence.steps, self.runner.dtype)

    def _can_sweep(self, sequence: Sequence) -> bool:
        fixed = sequence.tolerance is None and not sequence.top_k and sequence.steps >= MIN_SWEEP_STEPS
        return self.sweeping and fixed and not sequence.soft and self._settled_per_sweep >= self._min_settled

    def _fits_in_sweep(self, extra_rows: int) -> bool:
        """Whether few enough sequences are under way to sweep with `extra_rows` additional output rows."""
        scheduler = self.scheduler
        if len(scheduler.running) + scheduler.num_waiting > MAX_SWEEP_SEQUENCES:
            return False
        rows = sum(sequence.num_outputs for sequence in [*scheduler.running, *scheduler.waiting()])
        return rows + extra_rows <= min(MAX_SWEEP_ROWS, scheduler.token_budget - scheduler.max_running)

    def _apply_sweep(self, sequence: Sequence, hidden: Tensor, tokens: Tensor) -> None:
        """Record the positions that settled and set new inputs for the positions that stay open.

        Args:
            hidden: (m, d), hidden states of the m open positions.
            tokens: (m - 1, d), the soft tokens made from them: new inputs of the open positions except the first.
        """
        final = len(sequence.states)
        num_final, inputs = advance(torch.stack(sequence.soft[final:]), tokens, sequence.steps)
        self._settled_per_sweep += 0.02 * (num_final - self._settled_per_sweep)
        sequence.states.extend(hidden[:num_final].unbind())
        sequence.soft[final + num_final - 1 :] = inputs[num_final - 1 :].unbind()
        sequence.num_cached = sequence.num_tokens + len(sequence.states) - 1

    def _has_settled(self, sequence: Sequence) -> bool:
        pooled = sequence.states[self._first_pooled :]
        if sequence.tolerance is None or len(pooled) < 2:
            return False
        previous, current = pool(torch.stack(pooled))[-2:]
        return bool(settled(previous, current, sequence.tolerance))

    def _finish(self, sequences: list[Sequence]) -> None:
        trajectories: dict[Sequence, NDArray[np.float32]] = {}  # compute all first: an error here must lose no sequence
        by_steps: dict[int, list[Sequence]] = defaultdict(list)
        for sequence in sequences:
            by_steps[len(sequence.states)].append(sequence)
        for members in by_steps.values():
            states = torch.stack([state for sequence in members for state in sequence.states[self._first_pooled :]])
            rows = pool(states.view(len(members), -1, states.shape[-1])).cpu().numpy()
            trajectories.update(zip(members, rows, strict=True))
        for sequence, trajectory in trajectories.items():
            good = bool(np.isfinite(trajectory).all())  # a NaN spreads to later rows of this sequence, never to others
            top_tokens = sequence.top_tokens if sequence.top_k else None
            failure = GircseError(NOT_FINITE)
            self.undelivered.append((sequence, Refinement(trajectory.copy(), top_tokens) if good else failure))
            self.scheduler.finish(sequence, forget=not good)
            if good:
                self._drafts.learn(sequence.soft)
