from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from gircse_rag import Embedder
from gircse_rag.backends.paged import PagedBackend
from gircse_rag.serving.service import Service
from gircse_rag.serving.settings import Settings
from tests.http_server import serve

MODEL = "tiny"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for variable in ("GIRCSE_API_KEY", "VLLM_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture(scope="module")
def embedder(tiny_folder: Path) -> Iterator[Embedder]:
    """The served embedder; in tests also the source of the vectors that are right."""
    with Embedder.from_pretrained(str(tiny_folder), device="cpu", dtype="float32") as loaded:
        yield loaded


@pytest.fixture(scope="module")
def backend(embedder: Embedder) -> PagedBackend:
    assert isinstance(embedder.backend, PagedBackend)
    return embedder.backend


@pytest.fixture(scope="module")
def url(embedder: Embedder) -> Iterator[str]:
    """A server with default settings."""
    with serve(Service(embedder, Settings(model=MODEL))) as address:
        yield address


@pytest.fixture
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
        yield client
