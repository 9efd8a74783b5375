"""What a check found, and how it is run."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from gircse_rag.errors import GircseError, GircseWarning, first_line


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        name: the check, with its dtype if it has one.
        state: "passed", "failed" or "skipped".
        found: what was measured, or why the check failed or was skipped; no texts and no vectors.
        figures: measured values by name; `limits` are the largest accepted ones.
        seconds: wall-clock time of the check.
    """

    name: str
    state: Literal["passed", "failed", "skipped"]
    found: str
    figures: dict[str, float] = field(default_factory=dict)
    limits: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0


class SkippedError(Exception):
    """A check does not apply here; says why."""


# measured values by name, and the largest accepted ones
Figures = tuple[dict[str, float], dict[str, float]]
Check = Callable[[], Figures]


def run_check(label: str, check: Check) -> Finding:
    started = time.monotonic()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", GircseWarning)  # a small window cuts the long text, and that is fine
            figures, limits = check()
    except SkippedError as reason:
        return Finding(label, "skipped", str(reason))
    except Exception as error:  # the other checks still run
        kind = "" if isinstance(error, GircseError) else f"{type(error).__name__}: "
        return Finding(label, "failed", kind + first_line(error), seconds=time.monotonic() - started)
    bad = [key for key, limit in limits.items() if not figures[key] <= limit]  # also NaN
    found = ", ".join(f"{key} {figures[key]:.3g}" + _limit(limits.get(key)) for key in figures)
    finite = {key: value for key, value in figures.items() if np.isfinite(value)}  # JSON has no NaN
    state: Literal["passed", "failed"] = "failed" if bad else "passed"
    return Finding(label, state, found, finite, limits, time.monotonic() - started)


def _limit(limit: float | None) -> str:
    return "" if limit is None else f" (at most {limit:.3g})"
