"""Progress of a run, phase by phase, with the time left."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    Attributes:
        phase: "before", "train" or "after".
        done, total: texts embedded, or rows trained on, in this phase.
        seconds_left: until the end of the phase; None before its first step.
    """

    phase: str
    done: int
    total: int
    seconds_left: float | None


class Phase:
    """Reports the progress of one phase."""

    def __init__(self, name: str, total: int, report: Callable[[Progress], None]) -> None:
        self._name, self._total, self._report = name, total, report
        self._done = self._first = 0
        self._begun = time.monotonic()

    def advance(self, count: int) -> None:
        """Count what was done, or read from an earlier start."""
        self.reach(self._done + count)

    def reach(self, done: int) -> None:
        """Set what is done. The first call after a resumed start may be far ahead."""
        if not self._done and done > self._total / 10:
            self._first, self._begun = done, time.monotonic()
        self._done = min(self._total, done)
        fresh = self._done - self._first
        left = (time.monotonic() - self._begun) / fresh * (self._total - self._done) if fresh > 0 else None
        self._report(Progress(self._name, self._done, self._total, left))
