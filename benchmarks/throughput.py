"""How many documents and queries per second at K = 1, 5, 20? Our engine and the authors' loop.

    python benchmarks/throughput.py [--threads 2 --out benchmarks/results/throughput_2_threads.json] [--dtype float32]
    python benchmarks/throughput.py --shape qwen3-0.6b --texts 64 --steps 3 --rounds 2 --dtype float32 --out FILE
    python benchmarks/throughput.py --shape qwen2.5-7b --device cuda --texts 512 --steps 5 --out FILE

Uses 2,000 real documents of 5-300 tokens, and 2,000 short queries with one instruction, split into rounds of different
texts. The engine keeps its prefix cache between rounds, as between calls. For the share of the machine's peak, the
program counts the operations of our engine: 2 per layer weight and packed row, and 4 * V * d per soft token (LM head,
then E). Attention products, norms and the loop's padding are not counted. The peak is that of a large matrix product in
the same dtype on the same device, timed in each round.

--shape takes random weights of a published shape, and random texts, instead (shapes.py). A Qwen3 is then pooled as
LaSER's, and the loop is LaSER's published one.
"""

from __future__ import annotations

import statistics
import sys
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common, machine, report, shapes
from benchmarks.common import LOOP, Prompts, Work
from gircse_rag.backends.paged import PagedBackend

WARM = 32


def measure(checkpoint: Any, prompts: Prompts, steps: int, arguments: Any) -> dict[str, Any]:
    backend = PagedBackend(checkpoint.model, checkpoint.spec)  # its prefix cache is empty
    work = Work(backend)
    loop = common.laser_loop if checkpoint.spec.pools_prompt else common.loop
    ours, theirs = common.paged(backend, steps), loop(checkpoint.model, steps)
    warm, rest = prompts[:WARM], prompts[WARM:]
    ours(warm)  # longer than the warm-up of each round: products of new shapes compile their kernels
    rates: list[float] = []
    peaks: list[float] = []

    def counted(part: Prompts) -> None:
        before = work.flops(checkpoint.model)
        seconds = machine.timed(lambda: ours(part))["wall"]
        if part is not warm:
            rates.append((work.flops(checkpoint.model) - before) / seconds / 1e9)

    def peak(part: Prompts) -> None:
        if part is not warm:
            peaks.append(machine.peak_gflops(arguments.dtype, arguments.device))

    rounds = common.split(rest, arguments.rounds)
    warm = warm[:4]
    found = common.compare({"ours": counted, LOOP: theirs, "peak": peak}, rounds, arguments, warm=warm)
    found |= common.summary(found["rounds"], ["ours", LOOP])
    found["gflops_per_second"] = statistics.median(rates)
    found["share_of_peak"] = statistics.median(rate / peak for rate, peak in zip(rates, peaks, strict=True))
    found["cpu_clock"] = common.summary(found["rounds"], ["ours", LOOP], "cpu")["speedup"]
    found["mean_tokens"] = statistics.mean(map(len, rest))
    return found


def main(argv: list[str] | None = None) -> None:
    parser = report.parser(__doc__, "throughput", rounds=4)
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 20, 1])
    parser.add_argument("--shape", choices=shapes.SHAPES, help="random weights of this shape instead of --model")
    parser.add_argument("--kinds", nargs="+", choices=("documents", "queries"), default=["documents", "queries"])
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args(argv)
    shapes.check_arguments(parser, arguments)
    results = report.Report(arguments)
    checkpoint: Any
    if arguments.shape:
        checkpoint, prompts = shapes.load(arguments), shapes.texts(arguments.shape, arguments.texts + WARM)
    else:
        checkpoint = common.load(arguments)
        prompts = common.texts(arguments.data, checkpoint, arguments.texts + WARM)
    kinds = dict(zip(("documents", "queries"), prompts, strict=True))
    for steps in arguments.steps:
        for name in arguments.kinds:
            results.part(f"{name}, K={steps}", partial(measure, checkpoint, kinds[name], steps, arguments))


if __name__ == "__main__":
    main()
