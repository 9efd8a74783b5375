"""What does deterministic=True cost, and how much do vectors of the default depend on their batch?

    python benchmarks/deterministic.py --dtype float32

Times documents, and queries with one instruction, at K=5 with and without the mode, in turn. `price` is the ratio of
the times. `spread` compares each of the first texts alone with the same text in its batch: the largest difference of a
component, and the largest 1 - cos. It must be 0 with the mode.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common, report
from benchmarks.common import Prompts
from gircse_rag.backends.paged import PagedBackend

WARM = 16
ALONE = 20


def measure(checkpoint: Any, prompts: Prompts, arguments: Any) -> dict[str, Any]:
    contestants = {
        name: common.paged(
            PagedBackend(checkpoint.model, checkpoint.spec, deterministic=deterministic), arguments.steps
        )
        for name, deterministic in (("default", False), ("deterministic", True))
    }
    warm, prompts = prompts[:WARM], prompts[WARM:]
    found = common.compare(contestants, common.split(prompts, arguments.rounds), arguments, warm=warm)
    found["price"] = common.ratio(found["rounds"], "deterministic", "default")
    found["spread"] = {}
    for name, embed in contestants.items():
        together = embed(prompts)[:ALONE].astype(np.float64)
        alone = np.concatenate([embed([prompt]) for prompt in prompts[:ALONE]]).astype(np.float64)
        cosines = (together * alone).sum(axis=1) / np.linalg.norm(together, axis=1) / np.linalg.norm(alone, axis=1)
        found["spread"][name] = {
            "component": float(np.abs(together - alone).max()),
            "one_minus_cosine": 0.0 if np.array_equal(together, alone) else float((1 - cosines).max()),
        }
    return found


def main(argv: list[str] | None = None) -> None:
    parser = report.parser(__doc__, "deterministic", rounds=4)
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--steps", type=int, default=5)
    arguments = parser.parse_args(argv)
    results = report.Report(arguments)
    checkpoint = common.load(arguments)
    documents, queries = common.texts(arguments.data, checkpoint, arguments.texts + WARM)
    results.part("documents", partial(measure, checkpoint, documents, arguments))
    results.part("queries", partial(measure, checkpoint, queries, arguments))


if __name__ == "__main__":
    main()
