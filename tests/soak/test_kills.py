"""SIGKILL at random moments: 3 kills per store by default, many with `make soak`.

`make soak KILLS=500 SEED=7` sets the kills per store and the seed of the moments; the seed is printed with the result.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from qdrant_client import QdrantClient

from tests.qdrant_shim import Shim
from tests.soak.kills import (
    BATCH,
    ExactEmbedder,
    Figures,
    FolderStore,
    RealEmbedder,
    assert_same,
    ingest_version,
    read_state,
    run_rounds,
)

KILLS = int(os.environ.get("GIRCSE_SOAK_KILLS", "3"))
SEED = int(os.environ.get("GIRCSE_SOAK_SEED", "1"))
pytestmark = pytest.mark.slow


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory if possible: a kill, unlike a power cut, loses no data written to a file."""
    parent = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=parent) as name:
        yield Path(name)


def _check_figures(figures: Figures, label: str) -> None:
    print(f"\n{label}, seed {SEED}: {figures}")
    assert figures.kills == KILLS and figures.chunks > 100
    assert max(figures.lost) <= 2 * BATCH


@pytest.mark.parametrize("engine", ["local", "edge"])
def test_kills_do_not_change_the_result_in_an_embedded_store(folder: Path, engine: str) -> None:
    if engine == "edge":
        pytest.importorskip("qdrant_edge")
    store = FolderStore(folder, engine, ExactEmbedder())
    _check_figures(run_rounds(KILLS, folder, SEED, store.begin, store.check), engine)


def test_kills_and_server_faults_do_not_change_the_result(folder: Path) -> None:
    expected = QdrantClient(":memory:")
    ingest_version(1, expected, ExactEmbedder())
    ingest_version(2, expected, ExactEmbedder())
    with Shim() as shim:
        faults = itertools.count(SEED)

        def begin(with_version_1: bool) -> tuple[None, str]:
            with shim.paused():
                shim.store.delete_collection("docs")
                if with_version_1:
                    ingest_version(1, shim.store, ExactEmbedder())
            shim.fail_randomly(0.2, seed=next(faults))
            return None, shim.url

        def check() -> None:
            with shim.paused():
                assert_same(read_state(shim.store), read_state(expected))

        _check_figures(run_rounds(KILLS, folder, SEED, begin, check), "server with 20% faults")


@pytest.mark.model
@pytest.mark.skipif("GIRCSE_SOAK_KILLS" not in os.environ, reason="minutes: part of `make soak`")
def test_kills_do_not_change_the_result_of_the_real_model(folder: Path) -> None:
    store = FolderStore(folder, "local", RealEmbedder())
    figures = run_rounds(5, folder, SEED, store.begin, lambda: store.check(exact=False), real=True)
    print(f"\nreal model, seed {SEED}: {figures}; vectors at most {store.max_difference:.1e} apart")
    assert figures.kills == 5 and figures.chunks > 50
    assert max(figures.lost) <= 2 * BATCH
