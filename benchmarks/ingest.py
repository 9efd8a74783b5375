"""What does an ingest cost beside the embedding, and does its memory stay flat?

    python benchmarks/ingest.py throughput     real model, real store: documents a second, beside `Embedder` alone
    python benchmarks/ingest.py memory         1,000,000 documents, a stand-in embedder, a sink that only counts
    python benchmarks/ingest.py unchanged      `gircse ingest` of 50,000 documents that the collection has as they are

Each prints one JSON document. `throughput` times both on the same texts in turn and takes the median of the ratios.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from qdrant_client import models

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gircse_rag.embedder import EmbeddingResult
from gircse_rag.qdrant import Document, Progress, ingest, open_client
from tests.unit.qdrant.standin import StandIn

SENTENCE = "Document number {} says something short about the number {}, as documents do."


class Constant(StandIn):
    """Embeds in no time, so that all that is left is the pipeline's."""

    def embed(self, texts: Sequence[str], *args: Any, **options: Any) -> EmbeddingResult:
        count = len(texts)
        return EmbeddingResult(
            vectors=np.full((count, self.dimension), self.dimension**-0.5, np.float32),
            trajectory=None,
            steps=np.full(count, 5),
            prompt_tokens=np.full(count, 20),
            truncated=np.zeros(count, bool),
            soft_tokens=None,
        )


class Sink:
    """A store that forgets: it confirms every write, and has nothing."""

    def __init__(self) -> None:
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
    """MB of this process in memory now."""
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
        embedder=Constant(max_length=512),  # type: ignore[arg-type]
        client=sink,  # type: ignore[arg-type]
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
    prompts, _ = common.texts(arguments.data, checkpoint, (arguments.texts + 1) * arguments.rounds)  # type: ignore[arg-type]
    texts = [embedder.tokenizer.decode(ids) for ids in prompts]
    rounds = []
    for number in range(arguments.rounds):
        part = texts[number * arguments.texts : (number + 1) * arguments.texts]
        embedder.embed(texts[-2:], role="document")

        def alone(part: list[str] = part) -> int:
            return len(embedder.embed(part, role="document").vectors)

        def through(part: list[str] = part, number: int = number) -> int:
            with tempfile.TemporaryDirectory() as folder:
                client = open_client(folder)
                documents = [Document(f"{number}/{index}", text) for index, text in enumerate(part)]
                report = ingest(
                    documents, collection="docs", embedder=embedder, client=client, batch_size=arguments.batch_size
                )
                client.close()
            return report.embedded

        order = [alone, through] if number % 2 else [through, alone]
        found = {}
        for work in order:
            began = time.monotonic()
            chunks = work()
            found[work.__name__] = (time.monotonic() - began) / chunks
        rounds.append(found)
    return {
        "documents": arguments.texts,
        "batch_size": arguments.batch_size,
        "alone_per_second": round(1 / statistics.median(found["alone"] for found in rounds), 2),
        "ingest_per_second": round(1 / statistics.median(found["through"] for found in rounds), 2),
        "ratio": round(statistics.median(found["alone"] / found["through"] for found in rounds), 4),
        "ratios": [round(found["alone"] / found["through"], 4) for found in rounds],
    }


def unchanged(arguments: argparse.Namespace) -> dict[str, Any]:
    from gircse_rag import Embedder

    embedder = Embedder.from_pretrained("smollm2-135m", dtype="float32", device="cpu")
    fake = Constant(dimension=embedder.dimension)
    fake.spec, fake.tokenizer = embedder.spec, embedder.tokenizer  # type: ignore[assignment]
    with tempfile.TemporaryDirectory(dir=arguments.folder) as made:
        folder, store = Path(made) / "in", Path(made) / "store"
        folder.mkdir()
        for part in range(50):
            rows = range(part * arguments.texts // 50, (part + 1) * arguments.texts // 50)
            lines = [json.dumps({"text": SENTENCE.format(row, row), "id": row}) for row in rows]
            (folder / f"{part}.jsonl").write_text("\n".join(lines))
        from gircse_rag.qdrant import read_documents

        client = open_client(store, engine=arguments.engine)
        ingest(
            read_documents([str(folder)]),
            collection="docs",
            embedder=fake,  # type: ignore[arg-type]
            client=client,
            source=str(folder.resolve()),
        )
        client.close()
        command = [sys.executable, "-m", "gircse_rag.cli", "ingest", str(folder), "--collection", "docs"]
        command += ["--path", str(store), "--dtype", "float32", "--json"]
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
        "cpu_seconds": round(cpu.ru_utime + cpu.ru_stime, 1),
        "peak_resident_mb": round(cpu.ru_maxrss / 1024),
        "documents_per_second": round(report["unchanged"] / seconds),
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["throughput", "memory", "unchanged"])
    parser.add_argument("--documents", type=int, default=1_000_000, help="of `memory`")
    parser.add_argument("--texts", type=int, help="a round of `throughput` (400), or of `unchanged` (50,000)")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--engine", choices=["local", "edge"], default="local")
    parser.add_argument("--folder", help="where `unchanged` puts its files")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    arguments = parser.parse_args(argv)
    arguments.texts = arguments.texts or (400 if arguments.what == "throughput" else 50_000)
    found = {"throughput": throughput, "memory": memory, "unchanged": unchanged}[arguments.what](arguments)
    print(json.dumps({"benchmark": f"ingest {arguments.what}", **found}, indent=2))


if __name__ == "__main__":
    main()
