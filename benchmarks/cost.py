"""What does a text cost, by length, batch size and K? Our engine and the authors' loop.

    python benchmarks/cost.py

Texts are pieces of equal length from joined real documents, all different. `length`: 8 to 512 tokens, K=5, 2,048 tokens
per call (4 to 32 texts). `batch`: 1 to 256 texts of 32 tokens per call, K=5. `K`: 1 to 20, 32 texts of 32 tokens per
call. The loop splits a call into batches of at most 32, as the authors do.
"""

from __future__ import annotations

import sys
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common, report
from benchmarks.common import LOOP, Prompts
from gircse_rag.backends.paged import PagedBackend

STEPS = 5
LENGTH = 32
BATCH = 32


class Stream:
    """Cuts prompts of any length from one long sequence of tokens; uses each token once."""

    def __init__(self, documents: Prompts) -> None:
        self._tokens = list(chain.from_iterable(documents))
        self._next = 0

    def prompts(self, number: int, length: int) -> Prompts:
        start, self._next = self._next, self._next + number * length
        if self._next > len(self._tokens):
            raise SystemExit(f"the texts have {len(self._tokens)} tokens, {self._next} are needed; lower --rounds")
        return [tuple(self._tokens[start + i * length : start + (i + 1) * length]) for i in range(number)]


def points(arguments: Any) -> list[tuple[str, int, int, int]]:
    """List the measurements: (name, texts, tokens, K)."""
    lengths = [(f"length {n}", min(BATCH, max(4, arguments.tokens // n)), n, STEPS) for n in arguments.lengths]
    batches = [(f"batch {n}", n, LENGTH, STEPS) for n in arguments.batches]
    return lengths + batches + [(f"K {k}", BATCH, LENGTH, k) for k in arguments.steps]


def main(argv: list[str] | None = None) -> None:
    parser = report.parser(__doc__, "cost", rounds=3)
    parser.add_argument("--lengths", type=int, nargs="*", default=[8, 16, 32, 64, 128, 256, 512])
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 2, 4, 8, 16, 32, 64, 128, 256])
    parser.add_argument("--steps", type=int, nargs="*", default=[1, 2, 5, 10, 20])
    parser.add_argument("--tokens", type=int, default=2048, help="tokens per call for `length`")
    arguments = parser.parse_args(argv)
    results = report.Report(arguments)
    checkpoint = common.load(arguments)
    documents, _ = common.texts(arguments.data, checkpoint, 2000)
    stream = Stream(documents)
    backend = PagedBackend(checkpoint.model, checkpoint.spec)
    for name, number, length, steps in points(arguments):
        warm = stream.prompts(min(4, number), length)  # even if the part exists: a rerun must see the same texts
        rounds = [stream.prompts(number, length) for _ in range(arguments.rounds)]
        contestants = {"ours": common.paged(backend, steps), LOOP: common.loop(checkpoint.model, steps)}
        results.part(name, partial(measure, contestants, rounds, arguments, warm))


def measure(contestants: Any, rounds: list[Prompts], arguments: Any, warm: Prompts) -> dict[str, Any]:
    found = common.compare(contestants, rounds, arguments, warm=warm)
    found["seconds_per_text"] = {name: 1 / rate for name, rate in found["texts_per_second"].items()}
    return {**found, "texts": len(rounds[0]), "tokens": len(rounds[0][0])}


if __name__ == "__main__":
    main()
