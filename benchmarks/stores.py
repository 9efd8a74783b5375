"""How fast and exact is a search over N points in local mode, and in an edge store before and after indexing?

    python benchmarks/stores.py build --engine edge --folder DIR     files, and a collection of them; takes minutes
    python benchmarks/stores.py ask --folder DIR --output benchmarks/results/stores.json

`build` ingests small documents with random, clustered vectors of 576 dimensions. `ingest.py unchanged` uses the same
folder, and one built with --engine local. `ask` queries the stores in turn, so a busy machine slows all alike.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from qdrant_client import QdrantClient, models

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.ingest import SENTENCE, machine_and_versions
from gircse_rag import Embedder
from gircse_rag.backend import Refinement, Request
from gircse_rag.errors import GircseError
from gircse_rag.qdrant import ingest, open_client, read_documents

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DIMENSION, QUERIES, LIMIT, FILES = 576, 300, 10, 50
BARE = "edge without index"
Rows = np.ndarray[Any, Any]


class ClumpsBackend:
    """Refines document number n into row n of `vectors`."""

    def __init__(self, vectors: Rows, tokenizer: PreTrainedTokenizerBase) -> None:
        self.dimension = vectors.shape[1]
        self._vectors, self._tokenizer = vectors, tokenizer

    def refine(self, requests: Iterable[Request]) -> Iterator[tuple[int, Refinement | GircseError]]:
        for position, request in enumerate(requests):
            number = int(str(self._tokenizer.decode(request.token_ids)).split()[2])
            yield position, Refinement(np.tile(self._vectors[number], (request.steps, 1)))

    def close(self) -> None:
        pass


def clumps(vectors: Rows) -> Embedder:
    """An embedder of such vectors, under the bundled model's spec."""
    bundled = Embedder.from_pretrained("smollm2-135m", dtype="float32", device="cpu", lazy=True)
    return Embedder(ClumpsBackend(vectors, bundled.tokenizer), bundled.tokenizer, bundled.spec)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["build", "ask"])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--engine", choices=["local", "edge"], default="local", help="store for `build`")
    parser.add_argument("--points", type=int, default=50_000)
    parser.add_argument("--output", type=Path, help="JSON file of `ask`; includes the numbers of `build`")
    arguments = parser.parse_args()
    before = os.getloadavg()
    stored, queries = vectors(arguments.points)
    found = (
        build(arguments.folder, arguments.engine, stored)
        if arguments.what == "build"
        else ask(arguments.folder, stored, queries)
    )
    found |= {"load_before": before, "load_after": os.getloadavg()}
    if arguments.what == "build":
        (arguments.folder / f"built-{arguments.engine}.json").write_text(json.dumps(found))
    else:
        built = {file.stem: json.loads(file.read_text()) for file in sorted(arguments.folder.glob("built-*.json"))}
        found = {**machine_and_versions(), "points": arguments.points, "ask": found, **built}
    print(json.dumps(found, indent=1))
    if arguments.output:
        arguments.output.write_text(json.dumps(found, indent=1) + "\n")


def vectors(count: int) -> tuple[Rows, Rows]:
    """Make vectors to store (count, d) and to query (300, d): float32 unit rows in 500 clusters."""
    rng = np.random.default_rng(0)
    clumps = rng.standard_normal((500, DIMENSION))
    rows = clumps[rng.integers(0, 500, count + QUERIES)]
    rows += 0.8 * rng.standard_normal(rows.shape)
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
        embedder=clumps(stored),
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


def ask(folder: Path, stored: Rows, queries: Rows) -> dict[str, Any]:
    exact = np.argsort(-(queries @ stored.T), axis=1)[:, :LIMIT]
    clients: dict[str, QdrantClient] = {}
    found: dict[str, Any] = {}
    for name in (BARE, "edge"):
        began = time.perf_counter()
        clients[name] = open_client(folder / name, create=False)
        clients[name].query_points("docs", queries[0].tolist(), using="gircse", limit=LIMIT)
        found[name] = {"seconds to open and ask once": round(time.perf_counter() - began, 2)}
    clients["local"], found["local"] = in_memory(clients["edge"]), {}
    times: dict[str, list[float]] = {name: [] for name in clients}
    right = dict.fromkeys(clients, 0)
    for query, truth in zip(queries, exact, strict=True):
        for name, client in clients.items():
            began = time.perf_counter()
            points = client.query_points("docs", query.tolist(), using="gircse", limit=LIMIT).points
            times[name].append(1000 * (time.perf_counter() - began))
            rows = {int((point.payload or {})["doc_id"].partition("#")[2]) for point in points}
            right[name] += len(rows & set(truth.tolist()))
    for name, client in clients.items():
        found[name]["ms a question, median"] = round(float(np.median(times[name])), 2)
        found[name]["ms, fastest and slowest tenth"] = [
            round(float(np.quantile(times[name], q)), 2) for q in (0.1, 0.9)
        ]
        found[name]["recall@10"] = round(right[name] / (LIMIT * QUERIES), 4)
        client.close()
    return found


def in_memory(client: QdrantClient) -> QdrantClient:
    """Copy the points to local mode in memory, which is as fast as an opened folder."""
    copy, offset = QdrantClient(":memory:"), None
    config = {"gircse": models.VectorParams(size=DIMENSION, distance=models.Distance.COSINE)}
    copy.create_collection("docs", config)
    while True:
        page, offset = client.scroll("docs", limit=1000, offset=offset, with_vectors=True)
        copy.upsert("docs", [models.PointStruct(id=p.id, vector=p.vector or {}, payload=p.payload) for p in page])
        if offset is None:
            return copy


def freeze(client: Any) -> float:
    """Build the index; return the longest time, in seconds, that it blocked another thread of this process."""
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
