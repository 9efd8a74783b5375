"""Power cuts: the order in which an edge store syncs, renames and deletes."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from qdrant_client import models

from gircse_rag.errors import StoreError
from gircse_rag.qdrant import open_client

pytest.importorskip("qdrant_edge", reason="the edge extra is not installed")

from gircse_rag.qdrant.edge import EdgeClient

_DIMENSION, _MANY = 1024, 2_700
"""Just enough points of this dimension for `build_index` to build an index."""
_VECTORS = {"gircse": models.VectorParams(size=_DIMENSION, distance=models.Distance.COSINE)}


class _Record:
    """The synced, renamed and deleted paths below `store`, in order, as ("sync", "collections/docs")."""

    def __init__(self, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[tuple[str, str]] = []
        self.store = store
        sync, replace, rmtree = os.fsync, os.replace, shutil.rmtree

        def fsync(descriptor: int) -> None:
            inode = os.fstat(descriptor).st_ino
            self._add("sync", *(path for path in (store, *store.rglob("*")) if path.stat().st_ino == inode))
            sync(descriptor)

        def renaming(source: Any, target: Any, **options: Any) -> None:
            self._add("rename", Path(target))
            replace(source, target, **options)

        def deleting(path: Any, *arguments: Any, **options: Any) -> None:
            if Path(path).exists():
                self._add("delete", Path(path))
            rmtree(path, *arguments, **options)

        for name, function in (("fsync", fsync), ("replace", renaming), ("rename", renaming)):
            monkeypatch.setattr(os, name, function)
        monkeypatch.setattr(shutil, "rmtree", deleting)

    def _add(self, kind: str, *paths: Path) -> None:
        self.events += [(kind, path.relative_to(self.store).as_posix()) for path in paths]

    def index(self, kind: str, path: str, start: int = 0) -> int:
        return self.events.index((kind, path), start)

    def synced_before(self, end: int) -> set[str]:
        return {path for kind, path in self.events[:end] if kind == "sync"}


def _write(client: EdgeClient, count: int) -> None:
    vectors = np.random.default_rng(0).standard_normal((count, _DIMENSION))
    for start in range(0, count, 500):
        points = [
            models.PointStruct(id=start + row, vector={"gircse": vector.tolist()}, payload={})
            for row, vector in enumerate(vectors[start : start + 500])
        ]
        client.upsert("docs", points)


def _open(store: Path) -> EdgeClient:
    client = open_client(store, engine="edge")
    assert isinstance(client, EdgeClient)
    return client


@pytest.mark.slow
def test_a_new_index_is_on_disk_before_it_is_named_and_the_old_one_is_deleted_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, folder = tmp_path / "store", "collections/docs"
    client = _open(store)
    client.create_collection("docs", _VECTORS)
    _write(client, _MANY)
    old = (store / folder / "current").read_text()
    record = _Record(store, monkeypatch)
    assert client.build_index("docs")
    monkeypatch.undo()
    new = (store / folder / "current").read_text()
    renamed = record.index("rename", f"{folder}/current")
    copied = {path.relative_to(store).as_posix() for path in (store / folder / new).rglob("*")}
    assert len(copied) > 30 and copied <= record.synced_before(renamed)
    order = [
        record.index("sync", f"{folder}/{new}"),
        record.index("sync", folder),
        record.index("sync", f"{folder}/current.partial"),
        renamed,
        record.index("sync", folder, renamed),
        record.index("delete", f"{folder}/{old}"),
    ]
    assert order == sorted(order) and max(record.index("sync", path) for path in copied) < order[0]
    client.close()


def test_a_new_collection_is_on_disk_before_it_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "store"
    client = _open(store)
    record = _Record(store, monkeypatch)
    client.create_collection("docs", _VECTORS)
    monkeypatch.undo()
    shard = store / "collections/docs" / (store / "collections/docs/current").read_text()
    renamed = record.index("rename", "collections/docs/current")
    made = {path.relative_to(store).as_posix() for path in (shard, *shard.rglob("*"))}
    assert len(made) > 10 and made | {"collections", "collections/docs"} <= record.synced_before(renamed)
    assert record.index("sync", "collections/docs", renamed)
    record = _Record(store, monkeypatch)
    client.update_collection_aliases(
        [models.CreateAliasOperation(create_alias=models.CreateAlias(collection_name="docs", alias_name="alias"))]
    )
    assert record.events == [("sync", "edge.json.partial"), ("rename", "edge.json"), ("sync", ".")]
    client.close()


@pytest.mark.parametrize("opened", [True, False])
def test_a_collection_is_durably_gone_before_its_files_are_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: bool
) -> None:
    store = tmp_path / "store"
    client = _open(store)
    client.create_collection("docs", _VECTORS)
    if not opened:
        client.close()
        client = _open(store)
    record = _Record(store, monkeypatch)
    client.delete_collection("docs")
    assert record.events[0] == ("sync", "collections/docs") and record.events[1][0] == "delete"
    client.close()


def test_leftovers_are_deleted_after_the_current_shard_is_durably_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill between the rename and its sync leaves the old shard, which the disk may still name."""
    store = tmp_path / "store"
    client = _open(store)
    client.create_collection("docs", _VECTORS)
    client.close()
    (store / "collections/docs/shard-old").mkdir()
    client = _open(store)
    record = _Record(store, monkeypatch)
    assert client.count("docs").count == 0
    assert record.events == [("sync", "collections/docs"), ("delete", "collections/docs/shard-old")]
    client.close()


@pytest.mark.slow
def test_a_disk_that_cannot_sync_the_copy_keeps_the_old_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = _open(tmp_path / "store")
    client.create_collection("docs", _VECTORS)
    _write(client, _MANY)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", Mock(side_effect=OSError(errno.EIO, "broken disk")))
        with pytest.raises(StoreError, match=r"collections/docs: .*broken disk"):
            client.build_index("docs")
    assert client.count("docs").count == _MANY
    assert len(list((tmp_path / "store/collections/docs").glob("shard-*"))) == 1
    client.close()
