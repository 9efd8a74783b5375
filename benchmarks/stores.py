"""A question against N points in local mode and in an edge store, before and after its index: milliseconds and recall.

    python benchmarks/stores.py --points 50000 --output benchmarks/results/stores.json

The vectors are random clumps of 576 dimensions. The engines are asked in turn, so a busy machine slows all alike; local
mode is in memory, which answers as its folder does.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from qdrant_client import QdrantClient, models

from gircse_rag.qdrant.edge import EdgeClient

DIMENSION, ASKED, LIMIT = 576, 300, 10
VECTORS = {"gircse": models.VectorParams(size=DIMENSION, distance=models.Distance.COSINE)}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--points", type=int, default=50_000)
    arguments.add_argument("--output", type=Path)
    given = arguments.parse_args()
    chance = np.random.default_rng(0)
    clumps = chance.standard_normal((500, DIMENSION))
    rows = clumps[chance.integers(0, 500, given.points + ASKED)]
    rows += 0.8 * chance.standard_normal(rows.shape)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    stored, asked = rows[: given.points].astype(np.float32), rows[given.points :].astype(np.float32)
    exact = np.argsort(-(asked @ stored.T), axis=1)[:, :LIMIT]
    result: dict[str, Any] = {"points": given.points, "dimension": DIMENSION, "cpus": os.cpu_count()}
    with tempfile.TemporaryDirectory() as folder:
        local, edge, bare = QdrantClient(":memory:"), EdgeClient(f"{folder}/edge"), EdgeClient(f"{folder}/bare")
        for name, client in (("local", local), ("edge", edge), ("edge without index", bare)):
            client.create_collection("docs", VECTORS)
            began = time.perf_counter()
            for start in range(0, given.points, 128):
                client.upsert("docs", points(stored[start : start + 128], start))
            result[name] = {"points a second written": round(given.points / (time.perf_counter() - began))}
        began = time.perf_counter()
        result["edge"]["longest pause of this process while indexing, s"] = round(freeze(edge), 2)
        result["edge"]["seconds to index"] = round(time.perf_counter() - began, 1)
        clients = {"local": local, "edge": edge, "edge without index": bare}
        taken: dict[str, list[float]] = {name: [] for name in clients}
        right = dict.fromkeys(clients, 0)
        for query, truth in zip(asked, exact, strict=True):
            for name, client in clients.items():
                began = time.perf_counter()
                found = client.query_points("docs", query.tolist(), using="gircse", limit=LIMIT).points
                taken[name].append(1000 * (time.perf_counter() - began))
                right[name] += len({point.id for point in found} & set(truth.tolist()))
        for name in clients:
            result[name]["ms a question, median"] = round(float(np.median(taken[name])), 2)
            result[name]["ms, fastest tenth"] = round(float(np.quantile(taken[name], 0.1)), 2)
            result[name]["recall@10"] = round(right[name] / (LIMIT * ASKED), 4)
        result["megabytes on disk, edge"] = round(
            sum(f.stat().st_blocks * 512 for f in Path(folder, "edge").rglob("*") if f.is_file()) / 1e6
        )
        edge.close()
        bare.close()
    print(json.dumps(result, indent=2))
    if given.output:
        given.output.write_text(json.dumps(result, indent=2) + "\n")


def points(vectors: np.ndarray[Any, Any], start: int) -> list[models.PointStruct]:
    return [
        models.PointStruct(
            id=start + row,
            vector={"gircse": vector},
            payload={"page_content": f"text {start + row} " * 40, "metadata": {"n": start + row}},
        )
        for row, vector in enumerate(vectors.tolist())
    ]


def freeze(client: EdgeClient) -> float:
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
