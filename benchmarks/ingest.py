"""What does ingestion cost beyond embedding, and does its memory stay constant?

    python benchmarks/ingest.py throughput     real model, real store: documents per second, compared with `Embedder`
    python benchmarks/ingest.py memory         1,000,000 documents, a stand-in embedder, a sink that only counts
    python benchmarks/ingest.py unchanged      `gircse ingest` of the 50,000 documents that `stores.py build` put there

Each prints one JSON document. `throughput` times both in turn, on texts of the same lengths, and reports medians.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from qdrant_client import QdrantClient, models

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import processor
from gircse_rag.backend import Refinement, Request
from gircse_rag.errors import GircseError
from gircse_rag.qdrant import Document, Progress, ingest, open_client
from tests.stand_in import StandIn, WordHashBackend

WARM = 32
SENTENCE = "Document number {} says something short about the number {}, as documents do."


class ConstantBackend(WordHashBackend):
    """Gives every text one vector in no time: what is left is the pipeline's, and the Embedder's tokenising."""

    def refine(self, requests: Iterable[Request]) -> Iterator[tuple[int, Refinement | GircseError]]:
        for position, request in enumerate(requests):
            yield position, Refinement(np.full((request.steps, self.dimension), self.dimension**-0.5, np.float32))


class Sink:
    """A store that confirms every write and stores nothing."""

    def __init__(self) -> None:
        self._client: Any = None  # neither a server nor a folder
        self.init_options: dict[str, Any] = {}
        self.points = 0
        self._made = False

    def collection_exists(self, name: str) -> bool:
        return self._made

    def create_collection(self, name: str, **settings: Any) -> bool:
        self._made = True
        return True

    def retrieve(self, name: str, ids: list[str], **options: Any) -> list[models.Record]:
        return []

    def upsert(self, name: str, points: list[models.PointStruct], **options: Any) -> models.UpdateResult:
        self.points += len(points)
        return models.UpdateResult(status=models.UpdateStatus.COMPLETED)


def _resident() -> float:
    """Resident memory of this process in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def memory(arguments: argparse.Namespace) -> dict[str, Any]:
    marks: dict[int, tuple[float, float]] = {}
    began = time.monotonic()
    steps = sorted({10_000, 100_000, arguments.documents})

    def documents() -> Iterator[Document]:
        for number in range(arguments.documents):
            yield Document(f"folder/{number}.txt", SENTENCE.format(number, number), {"number": number})

    def mark(now: Progress) -> None:
        while steps and now.documents >= steps[0]:
            marks[steps.pop(0)] = (_resident(), time.monotonic() - began)

    sink = Sink()
    report = ingest(
        documents(),
        collection="docs",
        embedder=StandIn(max_length=512, words=ConstantBackend(16)),
        client=cast(QdrantClient, sink),
        batch_size=arguments.batch_size,
        progress=mark,
    )
    seconds, cpu = time.monotonic() - began, time.process_time()
    resident = {count: round(marks[count][0], 1) for count in marks}
    return {
        "documents": report.added,
        "points": sink.points,
        "documents_per_second": round(report.added / seconds),
        "cpu_seconds": round(cpu, 1),
        "resident_mb": resident,
        "growth_100k_to_end": round(resident[arguments.documents] / resident[100_000] - 1, 4),
        "threads": threading.active_count(),
    }


def throughput(arguments: argparse.Namespace) -> dict[str, Any]:
    import torch

    from benchmarks import common
    from gircse_rag import Embedder

    torch.set_num_threads(arguments.threads)
    embedder = Embedder.from_pretrained("smollm2-135m", dtype=arguments.dtype, device="cpu")
    checkpoint = SimpleNamespace(tokenizer=embedder.tokenizer, spec=embedder.spec)
    needed = 2 * arguments.texts * arguments.rounds + WARM
    prompts, _ = common.texts(arguments.data, checkpoint, needed)  # type: ignore[arg-type]
    texts = [embedder.tokenizer.decode(ids) for ids in prompts]
    rounds = []
    for number in range(arguments.rounds):
        part = sorted(texts[2 * number * arguments.texts : 2 * (number + 1) * arguments.texts], key=len)
        # Each side gets its own texts: equal texts would hit the prefix cache. Of every four texts in order of length,
        # one side gets the outer two and the other the inner two, so that lengths are balanced.
        outer, inner = part[0::4] + part[3::4], part[1::4] + part[2::4]

        def alone(part: list[str] = outer) -> int:
            return len(embedder.embed(part, role="document").vectors)

        def through(part: list[str] = inner, number: int = number) -> int:
            with tempfile.TemporaryDirectory() as folder:
                client = open_client(folder)
                documents = [Document(f"{number}/{index}", text) for index, text in enumerate(part)]
                report = ingest(
                    documents, collection="docs", embedder=embedder, client=client, batch_size=arguments.batch_size
                )
                client.close()
            return report.embedded

        order = [alone, through] if number % 2 else [through, alone]
        found: dict[str, float] = {}
        for work in order:
            work(texts[-WARM:])
            wall, cpu = time.monotonic(), time.process_time()
            chunks = work()
            found[work.__name__] = (time.monotonic() - wall) / chunks
            found[f"{work.__name__}, cpu"] = (time.process_time() - cpu) / chunks
        rounds.append(found)
        print(f"round {number + 1}: {found}", file=sys.stderr, flush=True)

    def ratios(suffix: str) -> list[float]:
        return [round(found[f"alone{suffix}"] / found[f"through{suffix}"], 4) for found in rounds]

    return {
        "documents": arguments.texts,
        "batch_size": arguments.batch_size,
        "alone_per_second": round(1 / statistics.median(found["alone"] for found in rounds), 2),
        "ingest_per_second": round(1 / statistics.median(found["through"] for found in rounds), 2),
        "dtype": arguments.dtype,
        "threads": arguments.threads,
        "ratio": statistics.median(ratios("")),
        "ratios": ratios(""),
        "ratio_of_cpu_time": statistics.median(ratios(", cpu")),
    }


def unchanged(arguments: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, "-m", "gircse_rag.cli", "ingest", str(arguments.folder / "in"), "--collection", "docs"]
    command += ["--path", str(arguments.folder / arguments.engine), "--dtype", "float32", "--json"]
    began = time.monotonic()
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds = time.monotonic() - began
    cpu = resource.getrusage(resource.RUSAGE_CHILDREN)
    report = json.loads(ran.stdout)
    return {
        "store": arguments.engine,
        "unchanged": report["unchanged"],
        "embedded": report["embedded"],
        "seconds": round(seconds, 1),
        "seconds_in_command": report["seconds"],
        "cpu_seconds": round(cpu.ru_utime + cpu.ru_stime, 1),
        "peak_resident_mb": round(cpu.ru_maxrss / 1024),
        "documents_per_second": round(report["unchanged"] / seconds),
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["throughput", "memory", "unchanged"])
    parser.add_argument("--documents", type=int, default=1_000_000, help="for `memory`")
    parser.add_argument("--texts", type=int, default=256, help="per round of `throughput`")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--engine", choices=["local", "edge"], default="local")
    parser.add_argument("--folder", type=Path, help="for `unchanged`: the folder of `stores.py build`")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--output", type=Path, help="JSON file to update; results of other runs are kept")
    arguments = parser.parse_args(argv)
    before = os.getloadavg()
    work = {"throughput": throughput, "memory": memory, "unchanged": unchanged}[arguments.what]
    found = {**work(arguments), "load_before": before, "load_after": os.getloadavg()}
    print(json.dumps({"benchmark": f"ingest {arguments.what}", **found}, indent=2))
    if arguments.output:
        kept = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
        name = " ".join([arguments.what, *([arguments.engine] if arguments.what == "unchanged" else [])])
        kept |= machine_and_versions()
        kept[name] = {"command": f"python {' '.join(sys.argv)}", **found}
        arguments.output.write_text(json.dumps(kept, indent=1) + "\n")


def machine_and_versions() -> dict[str, Any]:
    packages = ("torch", "transformers", "qdrant-client", "qdrant-edge-py")
    return {
        "machine": {"processor": processor(), "cpus": os.cpu_count(), "python": platform.python_version()},
        "versions": {package: version(package) for package in packages},
        "date": datetime.now(UTC).date().isoformat(),
    }


if __name__ == "__main__":
    main()
