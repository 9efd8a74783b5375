"""Are the engine's vectors equal to the float32 reference's, for every schedule? A correctness test on real texts.

    python benchmarks/congruence.py [--dtype float16] [--mixes "two threads" preemption]

Half of the 500 texts are documents of 5-300 tokens, half are queries with three instructions. Each text draws K from
1, 3, 5, 20. Every mix refines all texts, in its own order. Limits:

    z_1..z_5    cosine to the reference backend >= 0.99999, component differences <= 1e-3; in float16 1 - cosine <= 1e-6
    z_6..z_20   cosine >= 0.99999, or 1 - cosine at most the spread of the authors' loop itself: its largest
                1 - cosine between batch sizes 1, 8 and 32, in float32, over the texts with K=20

--cache stores the references, so an interrupted run continues. Needs no idle machine.
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
from gircse_rag.checkpoint import Checkpoint, load_checkpoint
from gircse_rag.engine.kv_cache import bytes_per_block
from gircse_rag.prompts import DEFAULT_INSTRUCTION
from gircse_rag.weights import DecoderWeights

STEPS = (1, 3, 5, 20)
INSTRUCTIONS = (
    DEFAULT_INSTRUCTION,
    "Given the description of a program, retrieve code that does it",
    "Retrieve texts of the same meaning",
)
# mix -> texts per call, threads, engine arguments (rows: size of the KV cache)
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
    """Make requests: half documents, half queries, with random K."""
    rng = random.Random(5)
    documents, queries = common.texts(data, checkpoint, number)
    prompts = documents[: number - number // 2]
    shared = tuple(checkpoint.tokenizer(f"Instruct: {DEFAULT_INSTRUCTION}\n", add_special_tokens=False).input_ids)
    for position, prompt in enumerate(queries[: number // 2]):
        instruction = INSTRUCTIONS[position % len(INSTRUCTIONS)]
        other = tuple(checkpoint.tokenizer(f"Instruct: {instruction}\n", add_special_tokens=False).input_ids)
        assert prompt[: len(shared)] == shared
        prompts.append(other + prompt[len(shared) :])
    return [Request(prompt, rng.choice(STEPS)) for prompt in prompts]


def references(model: Any, all_requests: list[Request], path: Path) -> tuple[list[NDArray[np.float32]], float]:
    """Return the reference's trajectories (K, d) and the spread at K=20; compute them unless the file exists."""
    if not path.exists():
        found = dict(ReferenceBackend(model).refine(all_requests))
        trajectories = {str(index): outcome.trajectory for index, outcome in found.items()}  # type: ignore[union-attr]
        deep = [request.token_ids for request in all_requests if request.steps == 20]
        by_size = []
        for size in (1, 8, 32):
            authors_loop.BATCH_SIZE = size
            by_size.append(authors_loop.embed(model, deep, 20).numpy())
        spread = max(1 - float((one * by_size[0]).sum(-1).min()) for one in by_size[1:])
        np.savez(path, spread=np.float64(spread), **trajectories)
    with np.load(path) as file:
        return [file[str(index)] for index in range(len(all_requests))], float(file["spread"])


def run(
    mix: str, checkpoint: Checkpoint, all_requests: list[Request], expected: list[NDArray[np.float32]], spread: float
) -> dict[str, Any]:
    """Refine all texts under one mix; return the largest deviations."""
    size, threads, options = MIXES[mix]
    options = dict(options)
    if rows := options.pop("rows", None):
        config = DecoderWeights.of(checkpoint.model).config
        options["cache_bytes"] = rows * bytes_per_block(config, 1, torch.float32)
    torch.set_num_threads(threads)
    backend = PagedBackend(checkpoint.model, checkpoint.spec, **options)
    order = list(range(len(all_requests)))
    random.Random(mix).shuffle(order)
    size = size or len(order)
    shallow, max_difference, deep = 1.0, 0.0, 1.0
    for start in range(0, len(order), size):
        part = order[start : start + size]
        for position, outcome in backend.refine([all_requests[index] for index in part]):
            assert isinstance(outcome, Refinement), outcome
            reference = expected[part[position]]
            cosines = (outcome.trajectory.astype(np.float64) * reference).sum(-1)
            shallow = min(shallow, float(cosines[:5].min()))
            max_difference = max(max_difference, float(np.abs(outcome.trajectory[:5] - reference[:5]).max()))
            deep = min(deep, float(cosines[5:].min(initial=1.0)))
    scheduler = backend._engine.scheduler
    scheduler.check_integrity()
    counts = {"preemptions": scheduler.num_preemptions, "prefix_hits": scheduler.blocks.num_hits}
    limit = 1 - 1e-6 if checkpoint.spec.dtype == "float16" else 0.99999
    return {
        "min_cosine_to_5": shallow,
        "max_abs_to_5": max_difference,
        "max_distance_beyond_5": 1 - deep,
        "spread_beyond_5": spread,
        "passed": shallow >= limit and max_difference <= 1e-3 and 1 - deep <= max(spread, 1e-5),
        "texts": len(all_requests),
        **counts,
    }


def main(argv: list[str] | None = None) -> None:
    parser = report.parser(__doc__, "congruence")
    parser.set_defaults(dtype="float32", out=report.RESULTS / "congruence.json")
    parser.add_argument("--texts", type=int, default=500)
    parser.add_argument("--mixes", nargs="+", choices=MIXES, default=list(MIXES))
    parser.add_argument("--cache", type=Path, default=Path("congruence.npz"), help="file for the reference's vectors")
    arguments = parser.parse_args(argv)
    mixes, arguments.mixes = arguments.mixes, "named"
    results = report.Report(arguments, measure=False)
    checkpoint = common.load(arguments)
    all_requests = requests(arguments.data, checkpoint, arguments.texts)
    exact = load_checkpoint(arguments.model, dtype=torch.float32, device="cpu").model
    expected, spread = references(exact, all_requests, arguments.cache)
    del exact
    for mix in mixes:
        results.part(mix, partial(run, mix, checkpoint, all_requests, expected, spread))


if __name__ == "__main__":
    main()
