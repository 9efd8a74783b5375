"""What does the prefix cache gain on queries with one instruction, compared with the possible maximum?

    python benchmarks/prefix_cache.py

At K=5 and block sizes 1 to 16 it times three variants in turn: cache on, cache off, and `limit`, the same queries
without their shared tokens, as if the instruction cost nothing. The part of an instruction that does not fill a block
is computed for each query, so smaller blocks save more rows but cost more bookkeeping.
"""

from __future__ import annotations

import gc
import sys
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common, report
from benchmarks.common import Prompts, Work
from gircse_rag.backends.paged import PagedBackend

WARM = 32


def measure(checkpoint: Any, queries: Prompts, block_size: int, arguments: Any) -> dict[str, Any]:
    shared = sum(1 for _ in takewhile(lambda ids: len(set(ids)) == 1, zip(*queries, strict=False)))
    caching = {"on": True, "off": False, "limit": True}
    backends = {
        name: PagedBackend(checkpoint.model, checkpoint.spec, block_size=block_size, prefix_caching=cached)
        for name, cached in caching.items()
    }
    work = {name: Work(backend) for name, backend in backends.items()}
    contestants = {name: common.paged(backend, arguments.steps) for name, backend in backends.items()}
    warm, queries = queries[:WARM], queries[WARM:]
    rows = dict.fromkeys(backends, 0)

    def counted(name: str) -> Any:
        def run(part: Prompts) -> None:
            before = work[name].rows
            contestants[name]([prompt[shared:] for prompt in part] if name == "limit" else part)
            rows[name] += work[name].rows - before if part is not warm else 0

        return run

    counting = {name: counted(name) for name in contestants}
    found = common.compare(counting, common.split(queries, arguments.rounds), arguments, warm=warm)
    rounds = found["rounds"]
    found["of_the_limit"] = common.ratio(rounds, "limit", "on")
    found["gain"] = common.ratio(rounds, "off", "on")
    found["rows_per_query"] = {name: number / sum(row["texts"] for row in rounds) for name, number in rows.items()}
    found["shared_tokens"] = shared
    gc.collect()  # the three engines hold three copies of the weights
    return found


def main(argv: list[str] | None = None) -> None:
    parser = report.parser(__doc__, "prefix_cache", rounds=4)
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--block-sizes", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    arguments = parser.parse_args(argv)
    results = report.Report(arguments)
    checkpoint = common.load(arguments)
    _, queries = common.texts(arguments.data, checkpoint, arguments.texts + WARM)
    for size in arguments.block_sizes:
        results.part(f"blocks of {size}", partial(measure, checkpoint, queries, size, arguments))


if __name__ == "__main__":
    main()
