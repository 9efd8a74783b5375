"""Load, slow clients, clients that hang up, keys, the log, the metrics and the end of a server."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import httpx
import numpy as np
import pytest

from gircse_rag import Embedder
from gircse_rag.backends.paged import PagedBackend
from gircse_rag.serving import server
from gircse_rag.serving.app import create_app
from gircse_rag.serving.server import make_server
from gircse_rag.serving.service import Service
from gircse_rag.serving.settings import Settings
from tests.http_server import serve
from tests.unit.backends.test_engine_thread import wait_until
from tests.unit.serving.conftest import MODEL

pytestmark = pytest.mark.slow  # every test starts a server

SECRET = "the text nobody may see"


class Gate:
    """Holds the engine back until `open` is called, so that a test decides when requests are answered."""

    def __init__(self, backend: PagedBackend, monkeypatch: pytest.MonkeyPatch) -> None:
        self._opened = threading.Event()
        forward = backend._engine.runner.forward

        def wait_and_forward(chunks: Any) -> Any:
            assert self._opened.wait(60)
            return forward(chunks)

        monkeypatch.setattr(backend._engine.runner, "forward", wait_and_forward)

    def open(self) -> None:
        self._opened.set()


@pytest.fixture
def start(embedder: Embedder) -> Iterator[Callable[..., tuple[httpx.Client, Service]]]:
    with ExitStack() as stack:

        def run(**options: Any) -> tuple[httpx.Client, Service]:
            service = Service(embedder, Settings(model=MODEL, **options))
            url = stack.enter_context(serve(service))
            limits = httpx.Limits(max_connections=None)
            client = httpx.Client(base_url=url, timeout=60, trust_env=False, limits=limits)
            return stack.enter_context(client), service

        yield run


def post(http: httpx.Client, text: Any = "a text", **fields: Any) -> httpx.Response:
    return http.post("/v1/embeddings", json={"input": text, **fields})


def test_a_full_queue_is_answered_429_with_retry_after(
    start: Callable[..., Any], backend: PagedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    http, service = start(max_concurrency=2, max_queue=3)
    gate = Gate(backend, monkeypatch)
    with ThreadPoolExecutor(5) as pool:
        answers = [pool.submit(post, http, f"text {number}") for number in range(5)]
        wait_until(lambda: service.calls.pending == (2, 3))
        refused = post(http)
        assert refused.status_code == 429 and int(refused.headers["Retry-After"]) >= 1
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert http.get("/health").status_code == 200
        assert "gircse_requests_waiting 3.0" in http.get("/metrics").text
        gate.open()
        assert [answer.result().status_code for answer in answers] == [200] * 5
    assert post(http).status_code == 200


def test_a_client_that_hangs_up_frees_its_blocks(start: Callable[..., Any], backend: PagedBackend) -> None:
    http, service = start()
    body = json.dumps({"input": [f"text {n}" for n in range(2000)], "steps": 64}).encode()
    head = f"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    with socket.create_connection((http.base_url.host, http.base_url.port)) as connection:
        connection.sendall(head.encode() + b"\r\n\r\n" + body)
        wait_until(lambda: backend.stats.used_blocks > 0)
    wait_until(lambda: service.calls.pending == (0, 0), seconds=10)
    assert post(http).status_code == 200
    assert backend.stats.used_blocks == backend.stats.running == backend.stats.waiting == 0
    backend._engine.scheduler.check_integrity()


def test_work_that_waits_is_dropped_when_its_client_hangs_up(
    start: Callable[..., Any], backend: PagedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    http, service = start(max_concurrency=1)
    gate = Gate(backend, monkeypatch)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(post, http)
        wait_until(lambda: service.calls.pending == (1, 0))
        with pytest.raises(httpx.ReadTimeout):
            http.post("/v1/embeddings", json={"input": "a text"}, timeout=0.2)
        wait_until(lambda: service.calls.pending == (1, 0))
        gate.open()
        assert first.result().status_code == 200


def test_work_that_takes_too_long_is_given_up(
    start: Callable[..., Any], backend: PagedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    http, service = start(timeout=0.2)
    gate = Gate(backend, monkeypatch)
    late = post(http)
    assert late.status_code == 504 and "no answer within 0.2 seconds" in late.json()["error"]["message"]
    gate.open()
    wait_until(lambda: service.calls.pending == (0, 0))
    assert backend.stats.used_blocks == 0


def test_a_slow_body_is_refused_and_holds_no_thread(start: Callable[..., Any]) -> None:
    http, service = start(body_timeout=0.2)
    with socket.create_connection((http.base_url.host, http.base_url.port)) as connection:
        connection.sendall(b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n{")
        assert service.calls.pending == (0, 0)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 408") and b"did not arrive within 0.2 seconds" in answer


def test_a_connection_that_sends_nothing_is_closed(start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_FIRST_BYTES_SECONDS", 0.1)
    http, _ = start()
    with socket.create_connection((http.base_url.host, http.base_url.port)) as connection:
        connection.sendall(b"POST /v1/embeddings HTT")
        connection.settimeout(30)
        assert connection.recv(65536) == b""


def test_bodies_without_a_length_are_bounded_too(start: Callable[..., Any]) -> None:
    http, _ = start(max_body_bytes=1000)
    chunks = (b" " * 100 for _ in range(100))
    answer = http.post("/v1/embeddings", content=chunks, headers={"Content-Type": "application/json"})
    assert answer.status_code == 413 and answer.json()["error"]["code"] == "body_too_large"


def test_the_key_is_required_everywhere_but_on_the_probes(start: Callable[..., Any]) -> None:
    http, _ = start(api_key="s3cret")
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "s3cret"},
        {"Authorization": "Basic s3cret"},
    ):
        for method, path in (
            ("POST", "/v1/embeddings"),
            ("POST", "/v2/embed"),
            ("GET", "/metrics"),
            ("GET", "/nothing"),
        ):
            answer = http.request(method, path, headers=headers, json={"input": "a"} if method == "POST" else None)
            assert answer.status_code == 401 and "s3cret" not in answer.text
    assert http.get("/health").status_code == http.get("/ready").status_code == 200
    http.headers["Authorization"] = "Bearer s3cret"
    assert post(http).status_code == 200
    assert http.get("/metrics").status_code == 200


def test_the_client_sends_the_key_of_the_environment(
    start: Callable[..., Any], tiny_folder: Any, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    http, _ = start(api_key="s3cret")
    monkeypatch.setenv("GIRCSE_API_KEY", "s3cret")
    with Embedder.from_pretrained(str(tiny_folder), backend="vllm", url=str(http.base_url)) as remote:
        assert np.abs(remote.embed_documents(["a text"]) - embedder.embed_documents(["a text"])).max() < 2e-5


def test_pages_of_other_origins_are_let_in_only_on_request(start: Callable[..., Any]) -> None:
    preflight = {"Origin": "http://page.example", "Access-Control-Request-Method": "POST"}
    http, _ = start()
    assert "access-control-allow-origin" not in http.options("/v1/embeddings", headers=preflight).headers
    allowed, _ = start(cors_origins=("http://page.example",), api_key="k")
    answer = allowed.options("/v1/embeddings", headers=preflight)
    assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == "http://page.example"


def test_the_log_has_ids_and_counts_but_no_texts(start: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gircse_rag.access")
    http, _ = start(api_key="s3cret")
    http.headers["Authorization"] = "Bearer s3cret"
    answer = http.post(f"/v1/embeddings?q={SECRET}", json={"input": [SECRET] * 3}, headers={"X-Request-Id": "mine-1"})
    assert answer.headers["X-Request-Id"] == "mine-1"
    forged = post(http, [SECRET, ""]).request
    assert forged is not None
    http.get("/v1/models", headers={"X-Request-Id": 'a"} {"status": 200'})
    wait_until(lambda: len(caplog.records) == 3)  # a request is logged after its answer has been sent
    first, second, third = (json.loads(record.message) for record in caplog.records)
    tokens = answer.json()["usage"]["prompt_tokens"]
    assert first | {"time": 0, "seconds": 0} == {
        "time": 0,
        "request_id": "mine-1",
        "client": "127.0.0.1",
        "method": "POST",
        "route": "/v1/embeddings",
        "status": 200,
        "seconds": 0,
        "inputs": 3,
        "prompt_tokens": tokens,
    }
    assert second["status"] == 400 and third["request_id"].isalnum()
    assert "nobody" not in caplog.text and "s3cret" not in caplog.text


def test_metrics_count_by_route_and_status(start: Callable[..., Any]) -> None:
    http, _ = start()
    post(http, ["one", "two"])
    post(http, [""])
    http.get("/v1/models/x/y")
    http.get("/no/such/route")

    def lines() -> set[str]:
        return set(http.get("/metrics").text.splitlines())

    # A request is counted after its answer has been sent.
    wait_until(lambda: 'gircse_http_requests_total{route="unknown",status="404"} 1.0' in lines())
    assert 'gircse_http_requests_total{route="/v1/embeddings",status="200"} 1.0' in lines()
    assert 'gircse_http_requests_total{route="/v1/embeddings",status="400"} 1.0' in lines()
    assert 'gircse_http_requests_total{route="/v1/models/{name:path}",status="404"} 1.0' in lines()
    assert "gircse_texts_total 2.0" in lines()
    assert any(line.startswith("gircse_engine_rows_total") and not line.endswith(" 0.0") for line in lines())


def test_an_unexpected_error_is_500_without_its_details(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    http, _ = start()
    with monkeypatch.context() as patch:
        patch.setattr("gircse_rag.serving.embedding._encode", lambda *_: {"": 0}["the path /etc/secret"])
        answer = post(http)
    assert answer.status_code == 500 and "/etc/secret" not in answer.text
    assert answer.json()["error"]["code"] == "bug"
    assert "/etc/secret" in caplog.text and answer.headers["X-Request-Id"] in caplog.text
    assert post(http).status_code == 200


def test_a_failing_forward_is_an_error_of_its_requests(
    start: Callable[..., Any], backend: PagedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    http, _ = start()
    with monkeypatch.context() as patch:
        patch.setattr(backend._engine.runner, "forward", lambda chunks: 1 / 0)
        answer = post(http)
    assert answer.status_code == 500 and answer.json()["error"]["code"] == "embedding_failed"
    assert "text 0: the forward pass failed" in answer.json()["error"]["message"]
    assert post(http).status_code == 200


def test_requests_under_way_are_finished_when_the_server_stops(
    embedder: Embedder, backend: PagedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service(embedder, Settings(model=MODEL))
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(2) as pool:
        http_server = make_server(create_app(service), service)
        running = pool.submit(http_server.run, sockets=[listener])
        wait_until(lambda: service.ready)
        gate = Gate(backend, monkeypatch)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        answer = pool.submit(httpx.post, f"{url}/v1/embeddings", json={"input": "a text"}, timeout=60, trust_env=False)
        wait_until(lambda: service.calls.pending == (1, 0))
        http_server.handle_exit(15, None)
        assert not service.ready
        time.sleep(0.3)  # uvicorn looks at the flag every 0.1 s
        gate.open()
        assert answer.result(60).status_code == 200
        running.result(60)


def test_answers_leave_at_once(start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without TCP_NODELAY the body of an answer waits 40 ms for the acknowledgement of its head (Nagle's algorithm)."""
    options: list[int] = []
    connection_made = server._Protocol.connection_made

    def record(protocol: server._Protocol, transport: Any) -> None:
        connection_made(protocol, transport)
        accepted = transport.get_extra_info("socket")
        options.append(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    monkeypatch.setattr(server._Protocol, "connection_made", record)
    http, _ = start()
    assert http.get("/health").status_code == 200
    assert options and all(options)


def test_fairness_a_short_request_does_not_wait_for_a_bulk(start: Callable[..., Any]) -> None:
    http, service = start()
    order: list[str] = []
    with ThreadPoolExecutor(2) as pool:
        bulk = pool.submit(post, http, [f"text {n}" for n in range(2000)], steps=8)
        bulk.add_done_callback(lambda _: order.append("bulk"))
        wait_until(lambda: service.backend.stats.running > 0)
        assert post(http, "short").status_code == 200
        order.append("short")
        assert bulk.result().status_code == 200
    assert order == ["short", "bulk"]
