"""Run `gircse serve` as a process."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx


@contextlib.contextmanager
def serve(folder: Path, scratch: Path, *options: str) -> Iterator[str]:
    """Serve `folder` in float32 and yield the address; the log and the exported model go to `scratch`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = scratch / "server.log"
    command = [str(Path(sys.executable).parent / "gircse"), "serve", "--backend", "vllm"]
    command += ["--model", str(folder), "--port", str(port)]
    command += ["--dtype", "float32", "--max-model-len", "600", "--max-num-seqs", "8", "--block-size", "32"]
    command += ["--max-num-batched-tokens", "128", "--enforce-eager", *options]
    environment = {**os.environ, "GIRCSE_CACHE": str(scratch)}
    with log.open("w") as out:
        server = subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT)
    try:
        for _ in range(1200):
            assert server.poll() is None, log.read_text()[-3000:]
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"http://127.0.0.1:{port}/health").is_success:
                    break
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)
