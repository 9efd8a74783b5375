from __future__ import annotations

import base64
import logging
import threading
import warnings
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from gircse_rag.backends.vllm.server_client import ServerBackend
from gircse_rag.errors import GircseError, GircseWarning, InputError, StoreError
from gircse_rag.qdrant import open_client
from gircse_rag.qdrant.stores import store_errors, store_name
from gircse_rag.urls import read_credentials

BASIC = f"Basic {base64.b64encode(b'me:pa/ss@S3CRET').decode()}"


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gircse_rag.urls._warned", set())
    for name in ("QDRANT_API_KEY", "VLLM_API_KEY", "QDRANT_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("url", "warns"),
    [
        ("http://db.example.com:6333", True),
        ("HTTP://10.0.0.7", True),
        ("http://127.evil.example", True),
        ("http://[2001:db8::1]:6333", True),
        ("https://db.example.com:6333", False),
        ("http://localhost:6333", False),
        ("http://qdrant.localhost", False),
        ("http://127.0.0.53:6333", False),
        ("http://[::1]:6333", False),
        ("db.example.com:6333", False),  # Qdrant's client takes https for it
        ("http://[bad", False),
    ],
)
def test_a_secret_over_plain_http_warns_once(monkeypatch: pytest.MonkeyPatch, url: str, warns: bool) -> None:
    monkeypatch.setenv("QDRANT_API_KEY", "s3cret")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert [read_credentials(url, "QDRANT_API_KEY") for _ in range(3)] == [(url, None, "s3cret")] * 3
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == warns
    assert all("QDRANT_API_KEY" in message and "use https" in message for message in messages)
    assert not any("s3cret" in message for message in messages)


def test_a_password_over_plain_http_warns_and_no_secret_does_not() -> None:
    assert read_credentials("http://db.example.com", "QDRANT_API_KEY") == ("http://db.example.com", None, None)
    with pytest.warns(GircseWarning, match="the password in the url is sent to http://db.example.com without"):
        found = read_credentials("http://me:pa%2Fss%40S3CRET@db.example.com", "QDRANT_API_KEY")
    assert found == ("http://db.example.com", BASIC, None)


class _Refusing(BaseHTTPRequestHandler):
    """Records the Authorization of every request and answers 401."""

    seen: list[Any]

    def do_GET(self) -> None:
        self.seen.append(self.headers.get("authorization"))
        self.send_response(401)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[Any]]]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    seen: list[Any] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Refusing,), {"seen": seen})) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://me:pa/ss@S3CRET@127.0.0.1:{server.server_port}", seen
        server.shutdown()


def test_the_password_in_a_qdrant_url_is_sent_and_never_shown(
    refusing: tuple[str, list[Any]], caplog: pytest.LogCaptureFixture
) -> None:
    url, seen = refusing
    caplog.set_level("DEBUG")
    client = open_client(url=url)
    with pytest.raises(StoreError, match="refuses access") as caught, store_errors(client):
        client.get_collections()
    client.close()
    assert seen == [BASIC]
    shown = [str(caught.value), repr(client), store_name(client), caplog.text]
    assert not any("S3CRET" in text or "pa/ss" in text for text in shown)


def test_the_password_in_a_server_url_is_sent_and_never_shown(
    refusing: tuple[str, list[Any]], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, seen = refusing
    caplog.set_level("DEBUG")
    logger = logging.getLogger("httpx")  # other tests' libraries may have silenced it
    monkeypatch.setattr(logger, "disabled", False)
    monkeypatch.setattr(logger, "propagate", True)
    monkeypatch.setattr(logging.root.manager, "disable", 0)
    caplog.set_level("DEBUG", logger="httpx")
    with pytest.raises(GircseError, match="answered 401") as caught:
        ServerBackend(f"{url}/v1")
    assert seen == [BASIC]
    assert "HTTP Request" in caplog.text, "httpx logs nothing, so this test shows nothing"
    assert not any("S3CRET" in text or "pa/ss" in text for text in (str(caught.value), caplog.text))


@pytest.mark.parametrize("open_it", [lambda url: open_client(url=url), ServerBackend])
def test_a_malformed_url_is_named_without_its_password(open_it: Any) -> None:
    with pytest.raises(InputError, match="is no URL") as caught:
        open_it("http://me:S3CRET@host:port/x")
    assert "S3CRET" not in str(caught.value) and "host:port" in str(caught.value)


def test_two_stores_are_refused_without_showing_the_password() -> None:
    with pytest.raises(InputError, match="name two stores") as caught:
        open_client("folder", "http://me:S3CRET@host")
    assert "S3CRET" not in str(caught.value)
