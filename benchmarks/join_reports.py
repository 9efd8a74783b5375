"""One report of several that `gircse eval` wrote for one model, each on other sets.

    python benchmarks/join_reports.py OUT REPORT REPORT ...

Sets are resampled independently, so the interval of the joint mean (and gain) follows from the parts': half-widths,
weighted by the number of sets, add in quadrature.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from math import hypot
from pathlib import Path

from gircse_rag.evaluation import Report, Score


def joined(parts: list[Report]) -> Report:
    first = parts[0]
    if len({(part.model, part.fingerprint, part.steps, part.limit) for part in parts}) > 1:
        raise SystemExit("these reports are of different models, steps or samples")
    weights = [sum(one.in_mean for one in part.sets) for part in parts]

    def mean(found: list[Mapping[int, Score]]) -> dict[int, Score]:
        shares = [(scores, weight / sum(weights)) for scores, weight in zip(found, weights, strict=True) if weight]
        means = {}
        for k in first.steps:
            value = sum(share * scores[k].value for scores, share in shares)
            below = hypot(*(share * (scores[k].value - scores[k].low) for scores, share in shares))
            above = hypot(*(share * (scores[k].high - scores[k].value) for scores, share in shares))
            means[k] = Score(value, value - below, value + above)
        return means

    return replace(
        first,
        sets=tuple(one for part in parts for one in part.sets),
        mean=mean([part.mean for part in parts]),
        gain=mean([part.gain for part in parts]),
        texts=sum(part.texts for part in parts),
        truncated=sum(part.truncated or 0 for part in parts),
        seconds=round(sum(part.seconds for part in parts), 1),
    )


if __name__ == "__main__":
    out, *paths = map(Path, sys.argv[1:])
    joined([Report.load(path) for path in paths]).save(out)
