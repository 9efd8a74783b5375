from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from qdrant_client import QdrantClient

from gircse_rag.qdrant import open_client
from tests.disk import SmallDisks
from tests.qdrant_shim import Shim
from tests.stand_in import StandIn


@pytest.fixture
def embedder() -> StandIn:
    return StandIn()


@pytest.fixture
def client(tmp_path: Path) -> Iterator[QdrantClient]:
    """A real embedded Qdrant (local mode) in a folder."""
    client = open_client(tmp_path / "store")
    yield client
    client.close()


@pytest.fixture(params=["local", "edge", "server"])
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], QdrantClient]]:
    """Opens the same store again and again, one of each kind; the server is the shim."""
    if request.param == "server":
        with Shim() as shim:
            yield shim.client
        return
    if request.param == "edge":
        pytest.importorskip("qdrant_edge", reason="the edge extra is not installed")
    yield lambda: open_client(tmp_path / "store", engine=request.param)


@pytest.fixture
def every_store(opener: Callable[[], QdrantClient]) -> Iterator[QdrantClient]:
    """A client of each kind of store."""
    client = opener()
    yield client
    client.close()


@pytest.fixture
def small_disks(tmp_path: Path) -> Iterator[SmallDisks]:
    disks = SmallDisks(tmp_path)
    yield disks
    disks.unmount()
