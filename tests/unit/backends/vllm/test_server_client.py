"""The server client against a stub server that fails, stalls and sends wrong answers on demand."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import numpy as np
import pytest

from gircse_rag.backend import Refinement, Request
from gircse_rag.backends.vllm import server_client as client
from gircse_rag.backends.vllm.server_client import ServerBackend
from gircse_rag.errors import GircseError, SpecMismatchError
from gircse_rag.spec import EmbeddingSpec
from tests.processes import run_in_fork

SPEC = EmbeddingSpec(base_model="stub", base_hash="0", tokenizer_hash="0", dimension=4)
Reply = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Answer as `gircse serve` does, unless the stub's `replies` or `posts` override it."""

    protocol_version = "HTTP/1.1"
    server: Stub

    def do_GET(self) -> None:
        self.server.paths.append(self.path)
        if self.path in self.server.replies:
            self.server.replies[self.path](self)
        elif self.path == "/v1/gircse":
            spec = self.server.spec
            self.send(200, {"spec": spec.to_dict(), "dtype": spec.dtype, "window": 600})
        else:
            self.send(200, {"data": [{"id": "stub"}]})

    def do_POST(self) -> None:
        self.body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.paths.append(self.path)
        replies = self.server.posts
        (replies.pop(0) if replies else Handler.embed)(self)

    def embed(self) -> None:
        assert self.body["tokenizer"] == self.server.spec.tokenizer_hash, (
            "the server refuses ids of an unknown tokenizer"
        )
        vectors = [np.eye(self.server.spec.dimension, dtype="<f4")[ids[0] % 4] for ids in self.body["input"]]
        self.send(200, {"data": [{"embedding": base64.b64encode(vector.tobytes()).decode()} for vector in vectors]})

    def send(self, status: int, body: Any, **headers: str) -> None:
        content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def hang_up(self) -> None:
        self.close_connection = True
        self.connection.close()

    def log_message(self, *_: object) -> None:
        pass


class Stub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.spec = SPEC
        self.paths: list[str] = []
        self.posts: list[Reply] = []
        self.replies: dict[str, Reply] = {}
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: object) -> None:
        """Print nothing: some tests disconnect on purpose."""


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    monkeypatch.setattr("gircse_rag.backoff.FIRST_WAIT", 0.01)
    monkeypatch.setattr("gircse_rag.backoff.LONGEST_WAIT", 0.05)
    monkeypatch.setattr(client, "LONGEST_WAIT", 0.05)
    monkeypatch.setattr(client, "DEADLINE", 20.0)
    monkeypatch.setattr(client, "CONNECT_DEADLINE", 0.3)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Stub() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def requests(number: int) -> list[Request]:
    return [Request((index, 1), 2) for index in range(number)]


def assert_correct(found: dict[int, Any], number: int) -> None:
    assert sorted(found) == list(range(number))
    for index, outcome in found.items():
        assert isinstance(outcome, Refinement), outcome
        assert outcome.vector.tolist() == np.eye(4)[index % 4].tolist()


@pytest.mark.parametrize(
    "reply", [Handler.hang_up, *(lambda handler, n=n: handler.send(n, "busy") for n in (429, 502, 503, 504))]
)
def test_transient_failures_are_retried(stub: Stub, reply: Reply) -> None:
    backend = ServerBackend(stub.url)
    stub.posts = [reply, reply, reply]
    assert_correct(dict(backend.refine(requests(150))), 150)
    assert stub.paths.count("/v1/embeddings") == 3 + 3  # three batches
    backend.close()


def test_an_old_failure_does_not_use_up_the_deadline(stub: Stub) -> None:
    backend = ServerBackend(stub.url)
    backend._failing_since = backend._last_failure = time.monotonic() - 3600
    stub.posts = [Handler.hang_up]
    assert_correct(dict(backend.refine(requests(1))), 1)
    backend.close()


def test_a_failed_batch_fails_only_its_texts(stub: Stub) -> None:
    backend = ServerBackend(stub.url)
    stub.posts = [lambda handler: handler.send(500, "broken")]
    found = dict(backend.refine(requests(100)))
    failed = [index for index, outcome in found.items() if isinstance(outcome, GircseError)]
    assert failed in (list(range(64)), list(range(64, 100)))
    assert "answered 500: broken" in str(found[failed[0]])


def test_a_dead_server_is_waited_for_once(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "DEADLINE", 0.5)
    backend = ServerBackend(stub.url)
    stub.replies["/v1/gircse"] = Handler.hang_up
    stub.posts = [Handler.hang_up] * 10_000
    start = time.monotonic()
    found = dict(backend.refine(requests(64 * 40)))
    assert time.monotonic() - start < 5  # one deadline for all batches
    assert len(found) == 64 * 40
    assert all("is it running?" in str(outcome) for outcome in found.values())


def test_another_model_at_the_same_address_is_detected(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = ServerBackend(stub.url)
    stub.spec = replace(SPEC, adapter_hash="another")
    stub.posts = [Handler.hang_up]  # as if the server had restarted
    with pytest.raises(SpecMismatchError):
        list(backend.refine(requests(1)))
    stub.spec = SPEC
    assert_correct(dict(backend.refine(requests(1))), 1)
    stub.spec = replace(SPEC, adapter_hash="another")
    monkeypatch.setattr(client, "MODEL_CHECK_INTERVAL", 0.0)  # as if the last check was long ago
    with pytest.raises(SpecMismatchError):
        list(backend.refine(requests(1)))


def test_a_vector_of_another_size_ends_the_call(stub: Stub) -> None:
    backend = ServerBackend(stub.url)
    stub.posts = [lambda handler: send_vectors(handler, 1, 0, 0)]
    with pytest.raises(SpecMismatchError, match="a vector of 3 numbers, not 4"):
        list(backend.refine(requests(1)))
    assert_correct(dict(backend.refine(requests(1))), 1)


def send_vectors(handler: Handler, *numbers: float) -> None:
    entry = {"embedding": base64.b64encode(np.array(numbers, dtype="<f4").tobytes()).decode()}
    handler.send(200, {"data": [entry] * len(handler.body["input"])})


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (lambda handler: send_vectors(handler, 1, 0, 0, float("nan")), "NaN"),
        (lambda handler: handler.send(200, {"data": []}), "a form that this version does not know"),
        (lambda handler: handler.send(200, {"data": [{"embedding": "A"}]}), "a form that this version does not know"),
        (lambda handler: handler.send(200, "<html>sign in</html>"), "answered '<html>sign in"),
        (lambda handler: handler.send(308, "", Location="https://other/v1"), "is now at https://other/v1"),
        (lambda handler: handler.send(401, "who are you?"), "answered 401: who are you?"),
    ],
)
def test_a_wrong_answer_is_reported(stub: Stub, reply: Reply, message: str) -> None:
    backend = ServerBackend(stub.url)
    stub.posts = [reply]
    (outcome,) = dict(backend.refine(requests(1))).values()
    assert isinstance(outcome, GircseError)
    assert message in str(outcome)
    assert_correct(dict(backend.refine(requests(1))), 1)


@pytest.mark.parametrize(
    ("path", "reply", "message"),
    [
        ("/v1/gircse", lambda handler: handler.send(404, "no"), "without our plugin"),
        ("/v1/gircse", lambda handler: handler.send(308, "", Location="https://other"), "is now at https://other"),
        ("/v1/gircse", lambda handler: handler.send(200, "<html>"), "answered '<html>'"),
        ("/v1/gircse", lambda handler: handler.send(200, {"spec": {}}), "that this version does not know"),
        ("/v1/models", lambda handler: handler.send(200, {"data": []}), "that this version does not know"),
        ("/v1/models", lambda handler: handler.send(503, "starting"), "answered 503: starting"),
    ],
)
def test_unusable_servers_are_refused_and_disconnected(
    stub: Stub, path: str, reply: Reply, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[bool] = []
    monkeypatch.setattr(httpx.Client, "close", lambda self: closed.append(True))
    stub.replies[path] = reply
    with pytest.raises(GircseError, match=message):
        ServerBackend(stub.url)
    assert closed


def test_proxies_of_the_environment_are_used(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("HTTP_PROXY", stub.url)
    stub.replies["http://far.example/v1/gircse"] = lambda handler: handler.send(418, "reached the proxy")
    with pytest.raises(GircseError, match="reached the proxy"):
        ServerBackend("http://far.example")


def test_a_closed_client_raises(stub: Stub) -> None:
    backend = ServerBackend(stub.url)
    stream = backend.refine(requests(300))
    next(stream)
    backend.close()
    backend.close()
    with pytest.raises(GircseError, match="closed"):
        list(stream)
    with pytest.raises(GircseError, match="closed"):
        list(backend.refine([]))


@pytest.mark.slow
def test_an_interrupted_process_does_not_wait_for_its_answers(stub: Stub) -> None:
    stub.posts = [lambda handler: time.sleep(60)]
    program = f"""
import signal
from gircse_rag.backend import Request
from gircse_rag.backends.vllm.server_client import ServerBackend

signal.signal(signal.SIGALRM, signal.default_int_handler)
backend = ServerBackend({stub.url!r})
signal.setitimer(signal.ITIMER_REAL, 1)
list(backend.refine([Request((1, 2), 3)]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=False)
    assert "KeyboardInterrupt" in done.stderr
    assert stub.paths[-1] == "/v1/embeddings"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_does_not_share_the_connections(stub: Stub) -> None:
    backend = ServerBackend(stub.url)

    def check() -> None:
        with pytest.raises(GircseError, match="loaded before the process forked"):
            list(backend.refine(requests(1)))
        backend.close()

    run_in_fork(check)
    assert_correct(dict(backend.refine(requests(1))), 1)
    backend.close()
