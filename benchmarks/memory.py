"""How much memory do ours and the authors' loop take above the loaded model, and does it grow with the documents?

    python benchmarks/memory.py

Each measurement is a process of its own: load the model, note the resident set (RSS), embed, sample the RSS every 20
ms. Ours is charged with all that the backend adds: the second copy of the weights that is reordered for oneDNN, the
keys and values, the compiled kernels. Documents repeat after 2,000; a salt token in front of each repeat keeps the
prefix cache from answering it. Needs no idle machine. Ours at 20,000 takes some 20 minutes.
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
SAMPLES = 200  # kept for the plot
MIB = 2**20


class Sampler(threading.Thread):
    """Watches this process' RSS; `peak` in MiB, `samples` of (seconds, texts done, MiB)."""

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
    """`number` different documents: after the first round, each with a token in front that names the round."""
    return [
        documents[i % len(documents)] if i < len(documents) else (i // len(documents), *documents[i % len(documents)])
        for i in range(number)
    ]


def trim() -> None:
    """Give back what loading left behind in the heap; it would otherwise be filled first and hide what is added."""
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def child(arguments: Any) -> None:
    """One measurement, as JSON on the last line of standard output."""
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
    """The peak in the first and in the second half of the texts: what grew."""
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
    parser.add_argument("--sizes", type=int, nargs="+", default=[200, 1000, 2000], help="documents, ours and the loop")
    parser.add_argument("--long", type=int, default=20_000, help="documents, ours alone; 0 leaves it out")
    parser.add_argument("--child", help="one measurement in this process: ours or loop, of --documents")
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
