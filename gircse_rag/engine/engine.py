"""Engine: schedules, runs, and turns hidden states into refinements. One caller at a time; see backends/paged.py.

Refinement is sequential where there are rows enough to keep the machine busy: a forward makes h_k and s_{k+1} of many
sequences. A few sequences are bound by reading the weights instead, and each forward saved is time saved: they refine
in parallel sweeps (sweeps.py).
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Hashable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gircse_rag.backend import Refinement
from gircse_rag.engine.block_manager import BlockManager
from gircse_rag.engine.model_runner import ModelRunner
from gircse_rag.engine.scheduler import Scheduler
from gircse_rag.engine.sequence import Sequence
from gircse_rag.engine.sweeps import Drafts, advance
from gircse_rag.errors import GircseError
from gircse_rag.refinement import pool, settled

# Up to how many sequences under way, and output rows, sequences sweep. Time against sequential, `averaged`
# (docs/understand/training-record.md), bfloat16, one CPU thread: K=5 and 1, 4, 8, 16 queries at once 0.57, 1.04, 1.26, 1.17 (they wait
# for the one that settles last); K=20 and 1, 2 queries 0.45, 0.48, and where only two of four sweep 1.54.
SWEEP_SEQUENCES = 2
SWEEP_ROWS = 48

# Positions that a sweep has to settle, on a running mean, for the engine to go on sweeping; below, it stops for good.
# In bfloat16 1.0 take 1.00 of the sequential time, and 1.9 (`averaged`, K=5) 0.57. In float32 the rows of a sweep are
# not free: one Zen 3 thread, one query: 2.1 settled a sweep take 0.75 (`batch384`, K=5), 1.6 take 1.33
# (`taught`, K=20; at a bound of 1.8 fourteen queries of it went by), 1.0 take 1.30 (raw base model, K=5).
WORTH_SWEEPING, WORTH_SWEEPING_FLOAT32 = 1.4, 2.0
FIRST_GUESS = 0.6  # what the running mean begins with, above that: as a trained model would

FEWEST_STEPS = 4  # of a sequence that sweeps: with fewer there is hardly a forward to save

Outcome = tuple[Sequence, Refinement | GircseError]


class Engine:
    """Sequences in, refinements out, a forward at a time.

    Args:
        runner: runs the model over `blocks`' cache.
        blocks: who owns which KV block.
        token_budget: rows a forward at most.
        max_running: sequences that hold blocks at once.
        sweeping: whether a few sequences may refine in parallel sweeps; False is for comparisons.

    Attributes:
        undelivered: the sequences that are done, each with its result or its own error. Whoever takes one from here
            has delivered it; after an interrupt the same sequence may come twice, and the first counts.
    """

    def __init__(
        self, runner: ModelRunner, blocks: BlockManager, *, token_budget: int, max_running: int, sweeping: bool = True
    ) -> None:
        self.runner = runner
        self.sweeping = sweeping
        self.scheduler = Scheduler(blocks, token_budget=token_budget, max_running=max_running)
        self.undelivered: deque[Outcome] = deque()
        self._drafts = Drafts()
        self._worth_sweeping = WORTH_SWEEPING_FLOAT32 if runner.dtype == torch.float32 else WORTH_SWEEPING
        self._settled_a_sweep = self._worth_sweeping + FIRST_GUESS  # running mean

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence. It must fit the cache and the model's window."""
        self.scheduler.add(sequence)

    def cancel(self, owner: Hashable) -> None:
        """Drop all that `owner` asked for."""
        self.scheduler.cancel(owner)

    @torch.inference_mode()
    def step(self) -> None:
        """One forward; those that are done with it are in `undelivered`. One that raises fails all (`fail`)."""
        try:
            self._step()
        except Exception as error:
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """End every sequence with an error, and leave an empty, usable engine."""
        failure = GircseError(f"the forward pass failed: {type(error).__name__}: {error}")
        failure.__cause__ = error
        self.undelivered.extend((sequence, failure) for sequence in self.scheduler.drain())

    def _step(self) -> None:
        self._draft()
        chunks = self.scheduler.schedule()
        if not chunks:
            return
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
        """Make each member's next soft tokens: one, or in a sweep those of all open positions but the first."""
        sources = [hidden if len(hidden) == 1 else hidden[:-1] for _, hidden in members]
        token = self.runner.soft_tokens(torch.cat(sources), top_k)
        soft = torch.split(token.embedding, [len(source) for source in sources])
        for (sequence, hidden), made in zip(members, soft, strict=True):
            if len(hidden) > 1:
                self._sweep(sequence, hidden, made)
            elif self._sweeps(sequence):
                drafts = self._drafts.tokens(sequence.steps, made.dtype) or [made[0]] * sequence.steps
                sequence.soft = [made[0], *drafts[1:]]
            else:
                sequence.soft.append(made[0])
        if token.token_ids is not None and token.weights is not None:  # never in a sweep
            rows = zip(members, token.token_ids.tolist(), token.weights.tolist(), strict=True)
            for (sequence, _), ids, weights in rows:
                sequence.top_tokens.append(list(zip(ids, weights, strict=True)))

    def _draft(self) -> None:
        """Give those that wait for admission drafts, if all under way may sweep: their prefill is their first sweep."""
        if not self.scheduler.num_waiting or not self._fits_a_sweep(0):
            return
        fresh = [sequence for sequence in self.scheduler.waiting() if self._may_sweep(sequence)]
        if self._fits_a_sweep(sum(sequence.steps for sequence in fresh)):
            for sequence in fresh:
                sequence.soft = self._drafts.tokens(sequence.steps, self.runner.dtype)

    def _sweeps(self, sequence: Sequence) -> bool:
        """Whether a sequence that has just made s_1 goes on in sweeps."""
        return self._may_sweep(sequence) and self._fits_a_sweep(sequence.steps - 1)

    def _may_sweep(self, sequence: Sequence) -> bool:
        fixed = sequence.tolerance is None and not sequence.top_k and sequence.steps >= FEWEST_STEPS
        return self.sweeping and fixed and not sequence.soft and self._settled_a_sweep >= self._worth_sweeping

    def _fits_a_sweep(self, more: int) -> bool:
        """Whether few enough run and wait, `more` output rows than they have now included."""
        scheduler = self.scheduler
        if len(scheduler.running) + scheduler.num_waiting > SWEEP_SEQUENCES:
            return False
        rows = sum(sequence.num_outputs for sequence in [*scheduler.running, *scheduler.waiting()])
        return rows + more <= min(SWEEP_ROWS, scheduler.token_budget - scheduler.max_running)

    def _sweep(self, sequence: Sequence, hidden: Tensor, made: Tensor) -> None:
        """Settle what is exact or no longer moves; the rest gets its new inputs and is computed again.

        Args:
            hidden: (m, d), the hidden states of the m open positions.
            made: (m - 1, d), the soft tokens they make: new inputs of the open positions but the first.
        """
        final = len(sequence.states)
        num_final, inputs = advance(torch.stack(sequence.soft[final:]), made, sequence.steps)
        self._settled_a_sweep += 0.02 * (num_final - self._settled_a_sweep)
        sequence.states.extend(hidden[:num_final].unbind())
        sequence.soft[final + num_final - 1 :] = inputs[num_final - 1 :].unbind()
        sequence.num_cached = sequence.num_tokens + len(sequence.states) - 1

    def _has_settled(self, sequence: Sequence) -> bool:
        if sequence.tolerance is None or len(sequence.states) < 3:
            return False
        previous, current = pool(torch.stack(sequence.states[1:]))[-2:]
        return bool(settled(previous, current, sequence.tolerance))

    def _finish(self, sequences: list[Sequence]) -> None:
        trajectories: dict[Sequence, NDArray[np.float32]] = {}  # all first: what may raise must not lose a sequence
        by_steps: dict[int, list[Sequence]] = defaultdict(list)
        for sequence in sequences:
            by_steps[len(sequence.states)].append(sequence)
        for members in by_steps.values():
            states = torch.stack([state for sequence in members for state in sequence.states[1:]])
            rows = pool(states.view(len(members), -1, states.shape[-1])).cpu().numpy()
            trajectories.update(zip(members, rows, strict=True))
        for sequence, trajectory in trajectories.items():
            good = bool(np.isfinite(trajectory).all())  # a NaN in any row reaches all later ones, and no others
            heaviest = sequence.top_tokens if sequence.top_k else None
            failure = GircseError("the model produced NaN or infinity for this text; try dtype='float32'")
            self.undelivered.append((sequence, Refinement(trajectory.copy(), heaviest) if good else failure))
            self.scheduler.finish(sequence, forget=not good)
            if good:
                self._drafts.learn(sequence.soft)
