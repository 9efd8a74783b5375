"""Which tasks share a graph: as few shapes as memory wants, with as little padding as they allow."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from benchmarks.training_h100.common import SPEC, say
from benchmarks.training_h100.graphed import Shape
from benchmarks.training_h100.rows import Fixed, load

LIKE = 0.8  # tasks whose tokens a batch differ by more than this share do not meet in a class

Member = tuple[list[str], np.ndarray]  # tasks, and for each place in a batch sorted by length the longest text


def classes(base: Path, data: Path, store: Path, size: int, count: int, wordings: Path | None, *, groups: int) -> None:
    """Group tasks into `count` classes that share a shape; runs on any machine and writes JSON to `store`."""
    rows, tasks, tokenizer = load(data, base, wordings)
    batches = Fixed(rows, tasks, tokenizer, SPEC, batch_size=size)
    found: dict[str, list[np.ndarray]] = {}
    for epoch in range(2):
        for indices in batches._epoch(epoch):
            batch = batches.encode([rows[i] for i in indices], epoch * len(rows) + int(indices[0]))
            found.setdefault(batch.rows[0].task, []).append(np.sort([len(t) for t in batch.texts]))
    weights = {task: len(x) for task, x in found.items()}
    real = sum(int(np.sum(x)) for x in found.values())

    def cost(member: Member) -> int:
        names, envelope = member
        return Shape.enclosing(envelope[None], groups).tokens * sum(weights[n] for n in names)

    members = [([task], np.stack(x).max(axis=0)) for task, x in found.items()]
    say(f"padding with a class a task: {sum(map(cost, members)) / real:.3f}")
    while len(members) > count:
        members = _closest_joined(members, cost)
    out = []
    for names, envelope in members:
        shape = Shape.enclosing(envelope[None], groups)
        out.append({"tasks": names, "counts": shape.counts, "widths": shape.widths, "tokens": shape.tokens})
    padding, largest = sum(map(cost, members)) / real, max(o["tokens"] for o in out)
    say(f"padding {padding:.3f} largest {largest} tokens of an epoch {real / 2}")
    store.write_text(json.dumps(out))


def _closest_joined(members: list[Member], cost) -> list[Member]:
    """The two members whose union adds least padding become one."""
    best = None
    for i in range(len(members)):
        for j in range(i + 1, len(members)):
            if abs(members[i][1].sum() / members[j][1].sum() - 1) > LIKE:
                continue
            union = members[i][0] + members[j][0], np.maximum(members[i][1], members[j][1])
            increase = cost(union) - cost(members[i]) - cost(members[j])
            if best is None or increase < best[0]:
                best = (increase, i, j, union)
    _, i, j, union = best
    return [m for k, m in enumerate(members) if k not in (i, j)] + [union]
