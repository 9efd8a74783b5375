from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from qdrant_client import QdrantClient

from gircse_rag.qdrant import open_client
from tests.disk import SmallDisks
from tests.unit.qdrant.standin import StandIn


@pytest.fixture
def embedder() -> StandIn:
    return StandIn()


@pytest.fixture
def client(tmp_path: Path) -> Iterator[QdrantClient]:
    """The real embedded Qdrant."""
    made = open_client(tmp_path / "store")
    yield made
    made.close()


@pytest.fixture
def small_disks(tmp_path: Path) -> Iterator[SmallDisks]:
    made = SmallDisks(tmp_path)
    yield made
    made.unmount()
