"""SIGKILL at random moments; the short form, and with GIRCSE_SOAK=1 (`make soak`) the full one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from qdrant_client import QdrantClient

from tests.qdrant_shim import Shim
from tests.soak.kills import BATCH, Exact, Figures, Folder, Real, assert_same, bring, rounds, state

SOAK = bool(os.environ.get("GIRCSE_SOAK"))
KILLS = 100 if SOAK else 3


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory where that is possible: a kill, unlike a power cut, loses nothing that was written to a file."""
    place = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=place) as made:
        yield Path(made)


def _judge(figures: Figures, where: str) -> None:
    print(f"\n{where}: {figures}")
    assert figures.kills == KILLS and figures.chunks > 100
    assert max(figures.lost) <= 2 * BATCH


@pytest.mark.parametrize("engine", ["local", "edge"])
def test_an_embedded_store_after_kills_is_the_store_without(folder: Path, engine: str) -> None:
    if engine == "edge":
        pytest.importorskip("qdrant_edge")
    store = Folder(folder, engine, Exact())
    _judge(rounds(KILLS, folder, 1, store.begin, store.check), engine)


def test_a_server_that_fails_and_kills_leave_what_a_good_day_leaves(folder: Path) -> None:
    expected = QdrantClient(":memory:")
    bring(1, expected, Exact())
    bring(2, expected, Exact())
    with Shim() as shim:
        faults = iter(range(10**6))

        def begin(with_1: bool) -> tuple[None, str]:
            with shim.quiet():
                shim.store.delete_collection("docs")
                if with_1:
                    bring(1, shim.store, Exact())
            shim.fail_often(0.2, seed=next(faults))
            return None, shim.url

        def check() -> None:
            with shim.quiet():
                assert_same(state(shim.store), state(expected))

        _judge(rounds(KILLS, folder, 2, begin, check), "server with 20% faults")


@pytest.mark.model
@pytest.mark.skipif(not SOAK, reason="minutes: part of `make soak`")
def test_the_real_model_after_kills(folder: Path) -> None:
    store = Folder(folder, "local", Real())
    figures = rounds(5, folder, 3, store.begin, lambda: store.check(exact=False), real=True)
    print(f"\nreal model: {figures}; vectors at most {store.apart:.1e} apart")
    assert figures.kills == 5 and figures.chunks > 50
    assert max(figures.lost) <= 2 * BATCH
