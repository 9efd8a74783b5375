"""A question against N points in local mode and in an edge store, before and after its index: milliseconds and recall.

    python benchmarks/stores.py build --engine edge --folder DIR     files, and a collection that has them; minutes
    python benchmarks/stores.py ask --folder DIR --output benchmarks/results/stores.json

`build` ingests small documents with an embedder that gives them random vectors of 576 dimensions, in clumps. The same
folder, and one built with --engine local, serve `ingest.py unchanged`. `ask` asks the stores in turn, so a busy machine
slows all alike.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from qdrant_client import QdrantClient, models

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.ingest import SENTENCE, Constant, machine_and_versions
from gircse_rag import Embedder
from gircse_rag.embedder import EmbeddingResult
from gircse_rag.qdrant import ingest, open_client, read_documents

DIMENSION, ASKED, LIMIT, FILES = 576, 300, 10, 50
BARE = "edge without index"
Rows = np.ndarray[Any, Any]


class Clumps(Constant):
    """Embeds document number n as row n of `vectors`, under the bundled model's spec."""

    def __init__(self, vectors: Rows) -> None:
        real = Embedder.from_pretrained("smollm2-135m", dtype="float32", device="cpu", lazy=True)
        super().__init__(dimension=real.dimension)
        self.spec, self.tokenizer = real.spec, real.tokenizer
        self._vectors = vectors

    def embed(self, texts: Sequence[str], *args: Any, **options: Any) -> EmbeddingResult:
        result = super().embed(texts, *args, **options)
        result.vectors[:] = self._vectors[[int(text.split()[2]) for text in texts]]
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["build", "ask"])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--engine", choices=["local", "edge"], default="local", help="that `build` builds")
    parser.add_argument("--points", type=int, default=50_000)
    parser.add_argument("--output", type=Path, help="of `ask`; the figures of `build` are in it too")
    given = parser.parse_args()
    before = os.getloadavg()
    stored, asked = vectors(given.points)
    found = build(given.folder, given.engine, stored) if given.what == "build" else ask(given.folder, stored, asked)
    found |= {"load_before": before, "load_after": os.getloadavg()}
    if given.what == "build":
        (given.folder / f"built-{given.engine}.json").write_text(json.dumps(found))
    else:
        built = {file.stem: json.loads(file.read_text()) for file in sorted(given.folder.glob("built-*.json"))}
        found = {**machine_and_versions(), "points": given.points, "ask": found, **built}
    print(json.dumps(found, indent=1))
    if given.output:
        given.output.write_text(json.dumps(found, indent=1) + "\n")


def vectors(count: int) -> tuple[Rows, Rows]:
    """(count, d) to store and (300, d) to ask, float32, unit rows in 500 clumps."""
    chance = np.random.default_rng(0)
    clumps = chance.standard_normal((500, DIMENSION))
    rows = clumps[chance.integers(0, 500, count + ASKED)]
    rows += 0.8 * chance.standard_normal(rows.shape)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows[:count].astype(np.float32), rows[count:].astype(np.float32)


def build(folder: Path, engine: Any, stored: Rows) -> dict[str, Any]:
    files, count = folder / "in", len(stored)
    files.mkdir(parents=True, exist_ok=True)
    for part in range(FILES):
        rows = range(part * count // FILES, (part + 1) * count // FILES)
        lines = [json.dumps({"text": SENTENCE.format(row, row), "id": row}) for row in rows]
        (files / f"{part}.jsonl").write_text("\n".join(lines))
    client = open_client(folder / engine, engine=engine)
    began = time.perf_counter()
    ingest(
        read_documents(files),
        collection="docs",
        embedder=Clumps(stored),  # type: ignore[arg-type]
        client=client,
        source=str(files.resolve()),
    )
    found: dict[str, Any] = {"points a second ingested": round(count / (time.perf_counter() - began))}
    client.close()
    if engine == "edge":
        shutil.copytree(folder / "edge", folder / BARE)
        client = open_client(folder / "edge")
        began = time.perf_counter()
        found["longest pause of this process while indexing, s"] = round(freeze(client), 2)
        found["seconds to index"] = round(time.perf_counter() - began, 1)
        client.close()
    used = sum(file.stat().st_blocks * 512 for file in (folder / engine).rglob("*") if file.is_file())
    return {**found, "megabytes on disk": round(used / 1e6)}


def ask(folder: Path, stored: Rows, asked: Rows) -> dict[str, Any]:
    exact = np.argsort(-(asked @ stored.T), axis=1)[:, :LIMIT]
    clients: dict[str, QdrantClient] = {}
    found: dict[str, Any] = {}
    for name in (BARE, "edge"):
        began = time.perf_counter()
        clients[name] = open_client(folder / name, create=False)
        clients[name].query_points("docs", asked[0].tolist(), using="gircse", limit=LIMIT)
        found[name] = {"seconds to open and ask once": round(time.perf_counter() - began, 2)}
    clients["local"], found["local"] = in_memory(clients["edge"]), {}
    taken: dict[str, list[float]] = {name: [] for name in clients}
    right = dict.fromkeys(clients, 0)
    for query, truth in zip(asked, exact, strict=True):
        for name, client in clients.items():
            began = time.perf_counter()
            points = client.query_points("docs", query.tolist(), using="gircse", limit=LIMIT).points
            taken[name].append(1000 * (time.perf_counter() - began))
            rows = {int((point.payload or {})["doc_id"].partition("#")[2]) for point in points}
            right[name] += len(rows & set(truth.tolist()))
    for name, client in clients.items():
        found[name]["ms a question, median"] = round(float(np.median(taken[name])), 2)
        found[name]["ms, fastest and slowest tenth"] = [
            round(float(np.quantile(taken[name], q)), 2) for q in (0.1, 0.9)
        ]
        found[name]["recall@10"] = round(right[name] / (LIMIT * ASKED), 4)
        client.close()
    return found


def in_memory(client: QdrantClient) -> QdrantClient:
    """The same points in local mode, which answers as quickly from its folder, once that is open."""
    copy, offset = QdrantClient(":memory:"), None
    config = {"gircse": models.VectorParams(size=DIMENSION, distance=models.Distance.COSINE)}
    copy.create_collection("docs", config)
    while True:
        page, offset = client.scroll("docs", limit=1000, offset=offset, with_vectors=True)
        copy.upsert("docs", [models.PointStruct(id=p.id, vector=p.vector or {}, payload=p.payload) for p in page])
        if offset is None:
            return copy


def freeze(client: Any) -> float:
    """Build the index; the longest that another thread of this process had to wait meanwhile."""
    longest, done = 0.0, threading.Event()

    def tick() -> None:
        nonlocal longest
        last = time.perf_counter()
        while not done.wait(0.01):
            now = time.perf_counter()
            longest, last = max(longest, now - last), now

    ticking = threading.Thread(target=tick)
    ticking.start()
    assert client.build_index("docs")
    done.set()
    ticking.join()
    return longest


if __name__ == "__main__":
    main()
