"""Two `gircse serve` behind HAProxy (deploy/haproxy.cfg), restarted in turn under load: no request is lost."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.qdrant_shim import Shim

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "deploy" / "haproxy.cfg"
CLIENTS = 6

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("haproxy") is None, reason="needs Debian's haproxy"),
    pytest.mark.skipif(not CONFIG.exists(), reason="needs a checkout"),
]


def free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(number)]
        return [listener.getsockname()[1] for listener in listeners]


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=30, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def wait_for(url: str) -> None:
    deadline = time.monotonic() + 120
    while not answers(url):
        assert time.monotonic() < deadline, f"{url} does not answer 200"
        time.sleep(0.05)


class Server:
    """`gircse serve` on a fixed port."""

    def __init__(self, port: int, folder: Path, store: str, log: Path) -> None:
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "gircse_rag.cli", "serve", "--model", str(folder), "--port", str(port)]
        self._command = [*command, "--device", "cpu", "--dtype", "float32", "--collection", "notes", "--url", store]
        self._log = log
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(self._command, stderr=log, stdout=log, env=environment)
        try:
            wait_for(f"{self.url}/ready")
        except AssertionError as error:
            raise AssertionError(self._log.read_text()) from error

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@contextmanager
def balancer(port: int, servers: list[int], folder: Path) -> Iterator[str]:
    """HAProxy with the shipped configuration, on other ports."""
    ports = {"8000": port, "8001": servers[0], "8002": servers[1]}
    config = re.sub(r"127\.0\.0\.1:(\d+)", lambda match: f"127.0.0.1:{ports[match[1]]}", CONFIG.read_text())
    path = folder / "haproxy.cfg"
    path.write_text(config)
    subprocess.run(["haproxy", "-c", "-f", str(path)], check=True, capture_output=True)
    process = subprocess.Popen(["haproxy", "-db", "-f", str(path)], stderr=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}"
        assert process.poll() is None
    finally:
        process.terminate()
        process.wait(30)


class Load:
    """Clients that embed, ingest and search in turn, with short pauses, until `stop`."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(CLIENTS)]
        self.answered = 0
        self.lost: list[str] = []
        self.written: set[str] = set()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(120)

    def _run(self, client: int) -> None:
        with httpx.Client(base_url=self._url, timeout=60, trust_env=False) as http:
            for turn in range(1_000_000):
                if self._stopping.is_set():
                    return
                name = f"{client}-{turn}"
                requests: list[tuple[str, dict[str, Any]]] = [
                    ("/v1/embeddings", {"input": [f"text {name}", "another one"]}),
                    ("/v1/collections/notes/documents", {"documents": [{"id": name, "text": f"a note about {name}"}]}),
                    ("/v1/search", {"question": f"what about {name}?", "limit": 1}),
                ]
                path, body = requests[turn % 3]
                time.sleep(0.02)
                try:
                    answer = http.post(path, json=body)
                    answer.raise_for_status()
                except httpx.HTTPError as error:
                    self.lost.append(f"{path}: {error!r}")
                    continue
                self.answered += 1
                if path.endswith("documents"):
                    self.written.add(name)


def test_a_rolling_restart_loses_no_request(tiny_folder: Path, tmp_path: Path) -> None:
    port, *ports = free_ports(3)
    with Shim() as shim, ExitStack() as stack:
        servers = [Server(number, tiny_folder, shim.url, tmp_path / f"{number}.log") for number in ports]
        for server in servers:
            stack.callback(server.kill)
            server.start()
        url = stack.enter_context(balancer(port, ports, tmp_path))
        wait_for(f"{url}/servers")
        httpx.post(
            f"{url}/v1/collections/notes/documents", json={"documents": [{"id": "first", "text": "a first note"}]}
        ).raise_for_status()
        load = Load(url)
        restarts = []
        try:
            for server in servers:
                before = load.answered
                assert server.stop() == 0
                server.start()
                restarts.append(load.answered - before)
                wait_for(f"{url}/servers")
        finally:
            load.stop()
        assert load.lost == []
        assert min(restarts) > 0, "nobody was served during a restart"
        with shim.paused():
            points = shim.store.scroll("notes", limit=100_000)[0]
        stored = {point.payload["gircse"]["document"] for point in points if point.payload}
        assert stored == load.written | {"first"}
        print(f"{load.answered} requests, {len(load.written)} documents, during restarts {restarts}")
