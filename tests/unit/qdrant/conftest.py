from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from qdrant_client import QdrantClient

from gircse_rag.qdrant import open_client
from tests.disk import SmallDisks
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


@pytest.fixture
def small_disks(tmp_path: Path) -> Iterator[SmallDisks]:
    disks = SmallDisks(tmp_path)
    yield disks
    disks.unmount()
