"""Are the engine's float32 vectors the reference's, whatever the schedule? No timing: correctness on many real texts.

    python benchmarks/congruence.py [--mixes "two threads" preemption]

Half of the 500 texts are documents of 5-300 tokens, half queries under three instructions. K is drawn from 1, 3, 5, 20
for each. Every mix goes through all texts, in an order of its own:

    z_1..z_5    cosine to the reference backend >= 0.99999, no component further than 1e-3
    z_6..z_20   cosine >= 0.99999 too, or no further than the reference computation is from itself: the authors' loop
                in float32 at batch sizes 1, 8 and 32, largest 1 - cosine over the texts with K=20

References are kept in --cache, so that a run that was stopped goes on. No idle machine is needed.
"""

from __future__ import annotations

import random
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import authors_loop, common, report
from gircse_rag.backend import Refinement, Request
from gircse_rag.backends.paged import PagedBackend
from gircse_rag.backends.reference import ReferenceBackend
from gircse_rag.checkpoint import Checkpoint
from gircse_rag.engine.kv_cache import bytes_per_block
from gircse_rag.prompts import DEFAULT_INSTRUCTION

STEPS = (1, 3, 5, 20)
INSTRUCTIONS = (
    DEFAULT_INSTRUCTION,
    "Given the description of a program, retrieve code that does it",
    "Retrieve texts of the same meaning",
)
# mix -> texts a call, threads, arguments of the engine (rows: of the whole KV cache, in blocks of 4)
MIXES: dict[str, tuple[int | None, int, dict[str, Any]]] = {
    "defaults": (None, 1, {}),
    "one text a call": (1, 1, {}),
    "7 texts a call": (7, 1, {}),
    "chunks of 37 rows": (None, 1, {"token_budget": 37, "max_running": 24}),
    "blocks of 16 rows": (None, 1, {"block_size": 16}),
    "no prefix cache": (None, 1, {"prefix_caching": False}),
    "preemption": (None, 1, {"rows": 1400}),
    "two threads": (None, 2, {}),
}


def requests(data: Path, checkpoint: Checkpoint, number: int) -> list[Request]:
    """Half documents, half queries; K at random."""
    rng = random.Random(5)
    documents, queries = common.texts(data, checkpoint, number)
    prompts = documents[: number - number // 2]
    start = tuple(checkpoint.tokenizer(f"Instruct: {DEFAULT_INSTRUCTION}\n", add_special_tokens=False).input_ids)
    for position, prompt in enumerate(queries[: number // 2]):
        instruction = INSTRUCTIONS[position % len(INSTRUCTIONS)]
        other = tuple(checkpoint.tokenizer(f"Instruct: {instruction}\n", add_special_tokens=False).input_ids)
        assert prompt[: len(start)] == start
        prompts.append(other + prompt[len(start) :])
    return [Request(prompt, rng.choice(STEPS)) for prompt in prompts]


def references(model: Any, asked: list[Request], kept: Path) -> tuple[list[NDArray[np.float32]], float]:
    """The reference's trajectories (K, d), and its own spread at K=20; kept in a file."""
    if not kept.exists():
        found = dict(ReferenceBackend(model).refine(asked))
        trajectories = {str(index): outcome.trajectory for index, outcome in found.items()}  # type: ignore[union-attr]
        deep = [request.token_ids for request in asked if request.steps == 20]
        by_size = []
        for size in (1, 8, 32):
            authors_loop.BATCH_SIZE = size
            by_size.append(authors_loop.embed(model, deep, 20).numpy())
        spread = max(1 - float((one * by_size[0]).sum(-1).min()) for one in by_size[1:])
        np.savez(kept, spread=np.float64(spread), **trajectories)
    with np.load(kept) as file:
        return [file[str(index)] for index in range(len(asked))], float(file["spread"])


def run(
    mix: str, checkpoint: Checkpoint, asked: list[Request], expected: list[NDArray[np.float32]], spread: float
) -> dict[str, Any]:
    """The worst of all texts under one mix."""
    size, threads, options = MIXES[mix]
    options = dict(options)
    if rows := options.pop("rows", None):
        options["cache_bytes"] = rows * bytes_per_block(checkpoint.model.config, 1, torch.float32)
    torch.set_num_threads(threads)
    backend = PagedBackend(checkpoint.model, checkpoint.spec, **options)
    order = list(range(len(asked)))
    random.Random(mix).shuffle(order)
    size = size or len(order)
    shallow, furthest, deep = 1.0, 0.0, 1.0
    for start in range(0, len(order), size):
        part = order[start : start + size]
        for position, outcome in backend.refine([asked[index] for index in part]):
            assert isinstance(outcome, Refinement), outcome
            reference = expected[part[position]]
            cosines = (outcome.trajectory * reference).sum(-1)
            shallow = min(shallow, float(cosines[:5].min()))
            furthest = max(furthest, float(np.abs(outcome.trajectory[:5] - reference[:5]).max()))
            deep = min(deep, float(cosines[5:].min(initial=1.0)))
    scheduler = backend._engine.scheduler
    scheduler.check_integrity()
    counts = {"preemptions": scheduler.num_preemptions, "prefix_hits": scheduler.blocks.num_hits}
    return {
        "min_cosine_to_5": shallow,
        "max_abs_to_5": furthest,
        "max_distance_beyond_5": 1 - deep,
        "spread_beyond_5": spread,
        "passed": shallow >= 0.99999 and furthest <= 1e-3 and 1 - deep <= max(spread, 1e-5),
        "texts": len(asked),
        **counts,
    }


def main(argv: list[str] | None = None) -> None:
    parser = report.parser(__doc__, "congruence")
    parser.set_defaults(dtype="float32", out=report.RESULTS / "congruence.json")
    parser.add_argument("--texts", type=int, default=500)
    parser.add_argument("--mixes", nargs="+", choices=MIXES, default=list(MIXES))
    parser.add_argument("--cache", type=Path, default=Path("congruence.npz"), help="where the reference's vectors stay")
    arguments = parser.parse_args(argv)
    mixes, arguments.mixes = arguments.mixes, "named"
    results = report.Report(arguments, measure=False)
    checkpoint = common.load(arguments)
    asked = requests(arguments.data, checkpoint, arguments.texts)
    expected, spread = references(checkpoint.model, asked, arguments.cache)
    for mix in mixes:
        results.part(mix, partial(run, mix, checkpoint, asked, expected, spread))


if __name__ == "__main__":
    main()
