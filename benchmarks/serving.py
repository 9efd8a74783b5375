"""How fast is `gircse serve` beside `Embedder`, how long does a short query wait under load, and does memory stay flat?

    python benchmarks/serving.py --documents 512 --queries 200

    throughput   the same documents by `Embedder` in one call, and by 64 clients over HTTP; in turn, per round
    queries      time of one short query: alone, and while 63 clients embed documents without a pause
    memory       resident set of the server after a warm-up and at the end; KV blocks that are held when all is done

The server is `gircse serve` in a process of its own, so clients and engine share no interpreter lock. The clients are
coroutines over httpx: two kinds of clients run at once and are timed apart, which a general load generator (locust)
would need two runs for, and gevent. Give the server a core, or as many as --threads, and the clients another one. It
needs an idle machine. The texts come from --data.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import numpy as np
import psutil  # type: ignore[import-untyped]
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import report
from benchmarks.common import DOCUMENT_SOURCES, QUERY_SOURCES
from gircse_rag import Embedder

INSTRUCTION = "Given a question, retrieve passages that answer it"
CLIENTS = 64
MIB = 2**20
WANTED = {"share": "at least 0.90", "slowdown": "at most 3", "growth": "at most 0.05", "blocks_held": "0"}


def read_texts(data: Path, documents: int, queries: int) -> tuple[list[str], list[str]]:
    """Different documents of 5 to 200 words, and questions of at most 12 words, in random order."""
    bodies: set[str] = set()
    questions: set[str] = set()
    for source in DOCUMENT_SOURCES:
        with gzip.open(data / "train" / f"{source}.jsonl.gz", "rt", encoding="utf-8") as file:
            rows = [json.loads(line) for _, line in zip(range(documents), file, strict=False)]
        bodies |= {row["positive"] for row in rows if 5 <= len(row["positive"].split()) <= 200}
        if source in QUERY_SOURCES:
            questions |= {row["query"] for row in rows if len(row["query"].split()) <= 12}
    chosen = random.Random(0)
    return chosen.sample(sorted(bodies), min(documents, len(bodies))), chosen.sample(
        sorted(questions), min(queries, len(questions))
    )


class Server:
    """`gircse serve` in a child process."""

    def __init__(self, url: str, process: subprocess.Popen[str]) -> None:
        self.url = url
        self._process = psutil.Process(process.pid)

    def resident(self) -> float:
        """Resident set size in MiB."""
        return float(self._process.memory_info().rss / MIB)

    def metric(self, name: str) -> float:
        """The value of an unlabelled metric."""
        lines = httpx.get(f"{self.url}/metrics", trust_env=False).text.splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


@contextmanager
def serve(arguments: argparse.Namespace) -> Iterator[Server]:
    """Start the server on a free port, wait until it is ready, and end it with SIGTERM."""
    command = [sys.executable, "-m", "gircse_rag.cli", "serve", "--model", arguments.model, "--port", "0"]
    command += ["--device", "cpu", "--dtype", arguments.dtype]
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stderr is not None
            said: list[str] = []
            for line in process.stderr:
                said.append(line)
                if " at http://" in line:
                    break
            else:
                raise SystemExit("the server did not start:\n" + "".join(said))
            url = said[-1].split()[-1]
            drain = subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL)  # its access log
            try:
                while httpx.get(f"{url}/ready", trust_env=False).status_code != 200:
                    time.sleep(0.1)
                yield Server(url, process)
            finally:
                process.terminate()
                process.wait(60)
                drain.wait(60)
        finally:
            process.kill()


async def post(http: httpx.AsyncClient, body: dict[str, Any]) -> tuple[float, Any]:
    """Send a request until it is not refused with 429; returns the seconds and the answer."""
    started = time.perf_counter()
    while True:
        answer = await http.post("/v1/embeddings", json={**body, "encoding_format": "base64"})
        if answer.status_code != 429:
            answer.raise_for_status()
            return time.perf_counter() - started, answer.json()
        await anyio.sleep(float(answer.headers["Retry-After"]))


def connect(url: str) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=2 * CLIENTS)
    return httpx.AsyncClient(base_url=url, timeout=600, trust_env=False, limits=limits)


async def embed_by_clients(url: str, documents: list[str], per_request: int) -> float:
    """Embed documents by CLIENTS clients; returns the seconds."""
    parts = iter([documents[start : start + per_request] for start in range(0, len(documents), per_request)])
    async with connect(url) as http:

        async def client() -> None:
            for part in parts:
                await post(http, {"input": part})

        started = time.perf_counter()
        async with anyio.create_task_group() as group:
            for _ in range(CLIENTS):
                group.start_soon(client)
        return time.perf_counter() - started


async def ask(url: str, queries: list[str], documents: list[str], per_request: int, clients: int) -> list[float]:
    """Ask one query after another while `clients` clients embed documents; returns the seconds of each query."""
    seconds: list[float] = []
    async with connect(url) as http, anyio.create_task_group() as group:

        async def load(seed: int) -> None:
            chosen = random.Random(seed)
            while True:
                await post(http, {"input": chosen.sample(documents, min(per_request, len(documents)))})

        for seed in range(clients):
            group.start_soon(load, seed)
        if clients:
            await anyio.sleep(2)
        for query in queries:
            seconds.append((await post(http, {"input": query, "instruction": INSTRUCTION}))[0])
        group.cancel_scope.cancel()  # the server ends the work of clients that hang up
    return seconds


def measure_throughput(
    server: Server, embedder: Embedder, documents: list[str], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Documents per second both ways, in turn. Salted per round, so that the prefix cache does not hit."""
    rounds = []
    for number in range(arguments.rounds):
        own, served = ([f"{number}{side} {text}" for text in documents] for side in "ab")
        started = time.perf_counter()
        embedder.embed_documents(own)
        alone = time.perf_counter() - started
        rounds.append((alone, anyio.run(embed_by_clients, server.url, served, arguments.per_request)))
    return {
        "embedder": len(documents) / statistics.median(alone for alone, _ in rounds),
        "server": len(documents) / statistics.median(seconds for _, seconds in rounds),
        "share": statistics.median(alone / seconds for alone, seconds in rounds),
    }


def measure_queries(
    server: Server, queries: list[str], documents: list[str], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Milliseconds of a query, alone and under load."""
    alone = anyio.run(ask, server.url, queries, documents, arguments.per_request, 0)
    loaded = anyio.run(ask, server.url, queries, documents, arguments.per_request, CLIENTS - 1)
    p50, p99 = float(np.percentile(alone, 50)), float(np.percentile(loaded, 99))
    return {
        "p50_alone": 1000 * p50,
        "p50_loaded": 1000 * float(np.percentile(loaded, 50)),
        "p99_loaded": 1000 * p99,
        "slowdown": p99 / p50,
    }


def measure_memory(server: Server, before: float) -> dict[str, Any]:
    """Growth of the server's memory, and the KV blocks that it still holds a minute after its clients have left."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if not server.metric("gircse_requests_running") and not server.metric("gircse_kv_blocks_used"):
            break
        time.sleep(0.1)
    held = server.metric("gircse_kv_blocks_used")
    after = server.resident()
    return {"before": before, "after": after, "growth": after / before - 1, "blocks_held": held}


def main(argv: list[str] | None = None) -> None:
    parser = report.parser(__doc__, "serving")
    parser.add_argument("--documents", type=int, default=512, help="number of documents per round")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--per-request", type=int, default=8, help="documents per request")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    documents, queries = read_texts(arguments.data, arguments.documents, arguments.queries)
    out = report.Report(arguments, measure=False)
    with (
        Embedder.from_pretrained(arguments.model, device="cpu", dtype=arguments.dtype) as embedder,
        serve(arguments) as server,
    ):
        warm = documents[: min(len(documents), 2 * CLIENTS)]
        anyio.run(embed_by_clients, server.url, warm, arguments.per_request)
        embedder.embed_documents(warm)
        before = server.resident()
        out.part("throughput", lambda: measure_throughput(server, embedder, documents, arguments))
        out.part("queries", lambda: measure_queries(server, queries, documents, arguments))
        out.part("memory", lambda: measure_memory(server, before))
    print(f"\n{'part':12} {'what':14} {'value':>10}  wanted")
    for part, values in out.data["results"].items():
        for name, value in values.items():
            print(f"{part:12} {name:14} {value:>10.3f}  {WANTED.get(name, '')}")


if __name__ == "__main__":
    main()
