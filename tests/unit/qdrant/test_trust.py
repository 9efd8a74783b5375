"""Local stores that this user did not make: refused in the default folder, a warning for a named folder."""

from __future__ import annotations

import shutil
import sqlite3
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from qdrant_client import QdrantClient, models

from gircse_rag.errors import GircseWarning, StoreError
from gircse_rag.qdrant import Document, ingest, open_client
from gircse_rag.qdrant.trust import MARK
from tests.stand_in import StandIn


class _Bomb:
    """Creates a file when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (Path("exploded"),)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory; the user's state folder is empty."""
    monkeypatch.delenv("QDRANT_URL", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


def _make(path: Path | None = None) -> None:
    client = open_client(path)
    ingest([Document("a", "text")], collection="docs", embedder=StandIn(), client=client)
    client.close()


def _plant_bomb(store: Path) -> None:
    import pickle

    database = sqlite3.connect(next(store.rglob("*.sqlite")))
    with database:
        database.execute("INSERT INTO points VALUES ('bomb', ?)", (pickle.dumps(_Bomb()),))
    database.close()


def _become_another_user(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(home / "state of another user"))


def test_ones_own_default_store_opens_without_a_path() -> None:
    _make()
    client = open_client(create=False)
    assert client.count("docs").count == 1
    client.close()


@pytest.mark.parametrize("create", [True, False])
@pytest.mark.parametrize("mark", ["none", "of another user", "copied"])
def test_a_default_store_that_somebody_else_made_is_not_unpickled(
    home: Path, monkeypatch: pytest.MonkeyPatch, mark: str, create: bool
) -> None:
    """As it happens in a cloned repository, even if its author is the user or copied a mark of the user."""
    _make(home / "made")
    _plant_bomb(home / "made")
    shutil.copytree(home / "made", "qdrant")
    if mark == "none":
        (Path("qdrant") / MARK).unlink()
    elif mark == "of another user":
        _become_another_user(home, monkeypatch)
    before = sorted(Path("qdrant").rglob("*"))
    with pytest.raises(StoreError, match=r"default folder qdrant, .*run code.*--path qdrant, path='qdrant'"):
        open_client(create=create)
    assert not Path("exploded").exists() and sorted(Path("qdrant").rglob("*")) == before


def test_points_that_wait_in_a_default_folder_without_a_store_are_not_unpickled(home: Path) -> None:
    _make(home / "made")
    _plant_bomb(home / "made")
    shutil.copytree(home / "made/collection", "qdrant/collection")
    with pytest.raises(StoreError, match=r"does not know who made the store .* name the folder once"):
        _make()
    assert not Path("exploded").exists()


def test_a_named_folder_is_consent_and_warns_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _make(Path("qdrant"))
    _become_another_user(home, monkeypatch)
    with pytest.warns(GircseWarning, match="qdrant was not made by gircse for this user; .*unpickles") as warned:
        open_client("qdrant").close()
    assert warned[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_client("qdrant").close()
        open_client().close()
        monkeypatch.setenv("XDG_STATE_HOME", str(home / "state"))
        open_client().close()  # the first user's mark is still there


def test_a_store_that_the_user_made_with_qdrant_client_is_named_once(home: Path) -> None:
    client = QdrantClient(path="qdrant")
    client.create_collection("mine", vectors_config=models.VectorParams(size=2, distance=models.Distance.COSINE))
    client.close()
    with pytest.raises(StoreError, match=r"if you made it or trust it, name the folder once \(--path qdrant"):
        open_client()
    with pytest.warns(GircseWarning, match="was not made by gircse for this user"):
        open_client("qdrant").close()
    open_client().close()


def test_a_copy_of_ones_own_store_does_not_warn(home: Path) -> None:
    _make(home / "made")
    shutil.copytree(home / "made", home / "copy")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_client(home / "copy").close()


def test_without_a_state_folder_the_default_folder_is_refused_and_a_named_one_works(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(home / "file"))
    with pytest.raises(StoreError, match=r"cannot be marked as yours .*--path qdrant"):
        open_client()
    _make(Path("qdrant"))
    with pytest.warns(GircseWarning):
        open_client("qdrant").close()


def test_a_state_folder_that_could_lie_in_the_working_directory_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gircse_rag.qdrant.trust.user_state_path", lambda _: Path("state"))
    with pytest.raises(StoreError, match="not an absolute path"):
        open_client()
    assert not Path("state").exists()


def test_an_edge_store_needs_no_mark(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("qdrant_edge", reason="the edge extra is not installed")
    open_client("qdrant", engine="edge").close()
    _become_another_user(home, monkeypatch)
    open_client().close()
