"""How long does one warm query take at K = 5 and 20? The authors' loop, our sequential steps, our parallel sweeps.

    python benchmarks/latency.py

Queries run one at a time, each once, on every contestant in turn; our prefix cache holds the instruction. The program
also measures accuracy: the cosine between sweeps and sequential steps, and for comparison the cosine between sequential
steps alone and in a batch, in bfloat16. It tests the trained adapter and the raw base model, whose soft tokens do not
converge.
"""

from __future__ import annotations

import statistics
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common, machine, report
from benchmarks.common import LOOP, Prompts, Vectors, Work
from gircse_rag.backends.paged import PagedBackend

WARM = 3


def engine(checkpoint: Any, *, sweeping: bool) -> PagedBackend:
    """Create a backend with an empty prefix cache, so that no query finds itself in the cache."""
    backend = PagedBackend(checkpoint.model, checkpoint.spec)
    backend._engine.sweeping = sweeping
    return backend


def cosines(one: Vectors, other: Vectors) -> dict[str, float]:
    both = (one * other).sum(axis=1)
    return {"min": float(both.min()), "mean": float(both.mean())}


def measure(checkpoint: Any, queries: Prompts, steps: int, arguments: Any) -> dict[str, Any]:
    backends = {"sequential": engine(checkpoint, sweeping=False), "sweeps": engine(checkpoint, sweeping=True)}
    work = {name: Work(backend) for name, backend in backends.items()}
    contestants = {LOOP: common.loop(checkpoint.model, steps)}
    contestants |= {name: common.paged(backend, steps) for name, backend in backends.items()}
    warm, queries = queries[:WARM], queries[WARM:]
    vectors: dict[str, dict[tuple[int, ...], Any]] = {name: {} for name in contestants}
    forwards: dict[str, dict[tuple[int, ...], int]] = {name: {} for name in backends}

    def recording(name: str) -> Any:
        def one(part: Prompts) -> None:
            before = work[name].forwards if name in work else 0
            vectors[name][part[0]] = contestants[name](part)[0]
            if name in work:
                forwards[name][part[0]] = work[name].forwards - before

        return one

    rounds: list[dict[str, Any]] = []
    order: Prompts = []
    for group in common.split(queries, arguments.rounds):
        with machine.idle(arguments):
            for query in warm:  # waiting for the lock may have evicted our data from the CPU caches
                for contestant in contestants.values():
                    contestant([query])
            singles = [[query] for query in group]
            found = common.compare({n: recording(n) for n in contestants}, singles, unlocked(arguments), warm=warm[:1])
            rounds += found["rounds"]
            order += group
    names = list(contestants)
    found = common.summary(rounds, names)
    seconds = {name: [row[name]["wall"] for row in rounds] for name in names}
    found["milliseconds"] = {name: statistics.median(values) * 1e3 for name, values in seconds.items()}
    found["p95_milliseconds"] = {name: float(np.percentile(values, 95)) * 1e3 for name, values in seconds.items()}
    found["sweeps_to_sequential"] = common.ratio(rounds, "sweeps", "sequential")
    found["forwards"] = {
        name: statistics.mean(by_query[query] for query in order) for name, by_query in forwards.items()
    }
    kept = {name: np.stack([by_query[query] for query in order]) for name, by_query in vectors.items()}
    together = common.paged(engine(checkpoint, sweeping=False), steps)(order)
    found["cosine"] = {
        "sweeps to sequential": cosines(kept["sweeps"], kept["sequential"]),
        "sequential alone to in a batch": cosines(together, kept["sequential"]),
        "sequential to loop": cosines(kept["sequential"], kept[LOOP]),
    }
    found["queries"] = len(order)
    found["rounds"] = rounds
    return found


def unlocked(arguments: Any) -> Any:
    """Copy of the arguments without the lock, which is already held for the whole group of queries."""
    return type(arguments)(**{**vars(arguments), "idle_lock": None})


def main(argv: list[str] | None = None) -> None:
    parser = report.parser(__doc__, "latency", rounds=4)
    parser.add_argument("--texts", type=int, default=40)
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 20])
    parser.add_argument("--base", default="smollm2-135m-base", help="model without adapter; '' skips it")
    arguments = parser.parse_args(argv)
    results = report.Report(arguments)
    for model in filter(None, (arguments.model, arguments.base)):
        arguments.model = model
        checkpoint = common.load(arguments)
        _, queries = common.texts(arguments.data, checkpoint, arguments.texts + WARM)
        for steps in arguments.steps:
            results.part(f"{model}, K={steps}", partial(measure, checkpoint, queries, steps, arguments))


if __name__ == "__main__":
    main()
