"""How much memory do our engine and the authors' loop need above the loaded model? Does it grow with the documents?

    python benchmarks/memory.py

Each measurement runs in its own process: it loads the model, reads the resident set size (RSS), embeds, and samples the
RSS every 20 ms. Our number includes all that the backend adds: the copy of the weights reordered for oneDNN, keys and
values, compiled kernels. Documents repeat after 2,000; each repeat starts with a salt token, so the prefix cache does
not hit. Needs no idle machine. 20,000 documents take our engine about 20 minutes.
"""

from __future__ import annotations

import ctypes
import gc
import json
import platform
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common, report
from benchmarks.common import LOOP, Prompts
from gircse_rag.backend import Request
from gircse_rag.backends.paged import PagedBackend

DISTINCT = 2000
SAMPLES = 200  # number of samples kept for the plot
MIB = 2**20


class Sampler(threading.Thread):
    """Samples the RSS of this process: `peak` in MiB, `samples` as (seconds, texts done, MiB)."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._process = psutil.Process()
        self._stopped = threading.Event()
        self.texts = 0
        self.peak = 0.0
        self.samples: list[tuple[float, int, float]] = []

    def run(self) -> None:
        start = time.perf_counter()
        while not self._stopped.wait(0.02):
            now = self._process.memory_info().rss / MIB
            self.peak = max(self.peak, now)
            self.samples.append((round(time.perf_counter() - start, 2), self.texts, round(now, 1)))

    def stop(self) -> None:
        self._stopped.set()
        self.join()


def salted(documents: Prompts, number: int) -> Prompts:
    """Repeat documents up to `number`. From the second round on, each starts with the round's number as a token."""
    return [
        documents[i % len(documents)] if i < len(documents) else (i // len(documents), *documents[i % len(documents)])
        for i in range(number)
    ]


def trim() -> None:
    """Return free heap memory to the system. Reusing it would hide memory that embedding adds."""
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def child(arguments: Any) -> None:
    """Run one measurement; print JSON as the last line."""
    checkpoint = common.load(arguments)
    documents, _ = common.texts(arguments.data, checkpoint, DISTINCT)
    documents = salted(documents, arguments.documents)
    trim()
    loaded = psutil.Process().memory_info().rss / MIB
    sampler = Sampler()
    sampler.start()
    if arguments.child == LOOP:
        embed = common.loop(checkpoint.model, arguments.steps)
        for start in range(0, len(documents), 32):
            embed(documents[start : start + 32])
            sampler.texts += len(documents[start : start + 32])
    else:
        backend = PagedBackend(checkpoint.model, checkpoint.spec)
        for _ in backend.refine(Request(document, arguments.steps) for document in documents):
            sampler.texts += 1
    sampler.stop()
    kept = sampler.samples[:: max(1, len(sampler.samples) // SAMPLES)]
    found = {"loaded_mib": loaded, "peak_above_model_mib": sampler.peak - loaded, "samples": kept}
    print(json.dumps({**found, "seconds": sampler.samples[-1][0], "half_peaks_mib": halves(sampler.samples, loaded)}))


def halves(samples: list[tuple[float, int, float]], loaded: float) -> list[float]:
    """Peaks in the first and in the second half of the texts; their difference is the growth."""
    middle = samples[-1][1] / 2
    first, second = ([mib for _, done, mib in samples if (done > middle) == late] for late in (False, True))
    return [max(part, default=loaded) - loaded for part in (first, second)]


def measure(arguments: Any, name: str, documents: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", name, "--documents", str(documents)]
    for option in ("model", "data", "dtype", "threads", "steps"):
        command += [f"--{option}", str(getattr(arguments, option))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**found, "documents": documents}


def main(argv: list[str] | None = None) -> None:
    parser = report.parser(__doc__, "memory")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=[200, 1000, 2000], help="numbers of documents for both")
    parser.add_argument("--long", type=int, default=20_000, help="documents for our engine alone; 0 skips it")
    parser.add_argument("--child", help="measure in this process: ours or loop, with --documents")
    parser.add_argument("--documents", type=int)
    arguments = parser.parse_args(argv)
    if arguments.child:
        child(arguments)
        return
    results = report.Report(arguments, measure=False)
    sizes = [(name, size) for size in arguments.sizes for name in ("ours", LOOP)]
    for name, size in sizes + [("ours", arguments.long)] * bool(arguments.long):
        results.part(f"{name}, {size}", partial(measure, arguments, name, size))


if __name__ == "__main__":
    main()
