"""One collection of an edge store: an engine shard in a folder, with an index built by a child process.

    NAME/current         "shard-3f2a...", the folder of the shard; the collection exists if and only if this file does
    NAME/shard-3f2a...   the engine's files

The collection's own metadata and vector sizes are stored in one reserved point. It has no vector, so no search returns
it; counts and scrolls filter it out.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import qdrant_edge as edge
from qdrant_client import models

from gircse_rag.errors import StoreError, is_rust_panic
from gircse_rag.qdrant.durable import replace_text, sync_folder, sync_tree
from gircse_rag.qdrant.edge.conversion import count_indexed

RESERVED = str(uuid.uuid5(uuid.NAMESPACE_URL, "gircse-rag/edge/collection"))
"""The id of the point that holds the collection's metadata and vector sizes."""

_FLUSH_EVERY = 20_000
"""Points between two flushes. Unflushed writes are replayed from the write-ahead log when the shard is opened."""
_INDEX_FROM_KB = 10_000
"""Kilobytes of vectors from which a segment gets an index (the engine's default). Below it, a scan is as fast."""
_ROOM_BYTES = 128 * 2**20
"""Free disk space required for a write; one request needs less than half of it. The engine writes through memory maps,
and a disk that becomes full under a memory map kills the process (SIGBUS)."""
_OPTIMIZE = """
import sys, qdrant_edge
shard = qdrant_edge.EdgeShard.load(sys.argv[1])
changed = shard.optimize()
shard.close()
print(changed)
"""


class EdgeShard:
    """One collection. Thread-safe: `engine` admits one caller at a time.

    Raises (all methods):
        StoreError: the collection is closed, the disk is nearly full, or the engine or the disk reports an error.
    """

    def __init__(self, folder: Path) -> None:
        """Open the collection and remove the leftovers of a killed `build_index`."""
        self.folder = folder
        self._lock = threading.RLock()
        self._writes = self._unflushed = 0
        self._closed = False
        with engine_errors(folder):
            self._name = (folder / "current").read_text(errors="replace")
            self._engine = edge.EdgeShard.load(str(folder / self._name))
            sync_folder(folder)  # a killed `build_index` may not have synced `current`
            for leftover in folder.glob("shard-*"):  # after loading: if `current` is damaged, keep every folder
                if leftover.name != self._name:
                    shutil.rmtree(leftover, ignore_errors=True)

    @classmethod
    def create(cls, folder: Path, about: dict[str, Any]) -> EdgeShard:
        """Create a collection atomically. See the property `about` for the argument."""
        vectors = {
            name: edge.EdgeVectorParams(size=size, distance=getattr(edge.Distance, distance))
            for name, (size, distance) in about["vectors"].items()
        }
        sparse_vectors = {
            name: edge.EdgeSparseVectorParams(modifier=edge.Modifier.Idf if idf else None)
            for name, idf in about["sparse_vectors"].items()
        }
        with engine_errors(folder):
            shutil.rmtree(folder, ignore_errors=True)  # leftovers of a killed `create`
            name = _new_name()
            (folder / name).mkdir(parents=True)
            _check_room(folder, _ROOM_BYTES)
            optimizers = edge.EdgeOptimizersConfig(indexing_threshold=_INDEX_FROM_KB)
            config = edge.EdgeConfig(vectors=vectors, sparse_vectors=sparse_vectors, optimizers=optimizers)
            engine = edge.EdgeShard.create(str(folder / name), config)
            engine.update(edge.UpdateOperation.upsert_points([edge.Point(RESERVED, {}, about)]))
            engine.close()
            sync_tree(folder)
            sync_folder(folder.parent)
            replace_text(folder / "current", name)
        return cls(folder)

    @property
    def about(self) -> dict[str, Any]:
        """The collection's description: {"metadata": {}, "vectors": {name: [size, distance]}, "sparse_vectors": {name:
        whether IDF}}. Collections of earlier versions have no "sparse_vectors"."""
        with self.engine() as engine:
            points = engine.retrieve([RESERVED], with_payload=True, with_vector=False)
        about = dict(points[0].payload or {}) if points else {}
        if not isinstance(about.get("metadata"), dict) or not isinstance(about.get("vectors"), dict):
            raise StoreError(
                f"the edge store in {self.folder} is damaged: the point that describes the collection cannot be read; "
                "restore the folder from a backup, or delete it and ingest its documents again"
            )
        return about

    @contextmanager
    def engine(self) -> Iterator[edge.EdgeShard]:
        """The engine's shard, for one caller at a time."""
        with self._lock, engine_errors(self.folder):
            if self._closed:
                raise StoreError(f"the collection in {self.folder} was closed or deleted meanwhile; open it again")
            yield self._engine

    def write(self, operation: edge.UpdateOperation, points: int = 1) -> models.UpdateResult:
        """Apply an update. On return it is in the write-ahead log and survives a kill."""
        with self.engine() as engine:
            _check_room(self.folder, _ROOM_BYTES)
            engine.update(operation)
            self._writes += 1
            self._unflushed += points
            if self._unflushed >= _FLUSH_EVERY:
                engine.flush()
                self._unflushed = 0
        return models.UpdateResult(operation_id=0, status=models.UpdateStatus.COMPLETED)

    def build_index(self) -> bool:
        """Index a copy in a child process; swap it in unless there were writes. See `EdgeClient.build_index`."""
        floats_per_point = sum(size for size, _ in self.about["vectors"].values())
        with self.engine() as engine:
            info = engine.info()
            if (info.points_count - count_indexed(self.about, info)) * floats_per_point * 4 <= _INDEX_FROM_KB * 1024:
                return False
            engine.flush()
            self._unflushed = 0
            writes, copy = self._writes, self.folder / _new_name()
            size = sum(file.stat().st_size for file in (self.folder / self._name).rglob("*") if file.is_file())
            _check_room(self.folder, 2 * size + _ROOM_BYTES)  # the copy and its index
            shutil.copytree(self.folder / self._name, copy)
        try:
            child = subprocess.run([sys.executable, "-c", _OPTIMIZE, str(copy)], capture_output=True, text=True)
            grew = child.returncode == 0 and child.stdout.strip() == "True"
            if grew and self._writes == writes:
                with engine_errors(self.folder), suppress(FileNotFoundError):  # if it was deleted meanwhile; see below
                    sync_tree(copy)
                    sync_folder(self.folder)
            with self.engine() as engine:
                if child.returncode:
                    raise StoreError(f"indexing {self.folder} failed; it is unchanged. {child.stderr.strip()[-300:]}")
                if self._writes != writes or not grew:
                    return False
                indexed, old_name = edge.EdgeShard.load(str(copy)), self._name
                try:
                    replace_text(self.folder / "current", copy.name)
                finally:  # also after an interrupt: whatever `current` names now is the shard
                    if self._is_current(copy):
                        self._engine, self._name = indexed, copy.name
                engine.close()
                shutil.rmtree(self.folder / old_name, ignore_errors=True)
                return True
        finally:
            if not self._is_current(copy):
                shutil.rmtree(copy, ignore_errors=True)

    def _is_current(self, shard: Path) -> bool:
        try:
            return (self.folder / "current").read_text() == shard.name
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Flush and release the folder, which is released even if the flush fails."""
        with self.engine() as engine:
            self._closed = True
            try:
                engine.flush()
            finally:
                engine.close()

    def delete(self) -> None:
        """Close the collection and delete its files."""
        with self.engine() as engine:
            (self.folder / "current").unlink()  # from here on the collection does not exist
            self._closed = True
            engine.close()  # without a flush, so that deleting works on a full disk
            sync_folder(self.folder)
            shutil.rmtree(self.folder / self._name)
            # The child of a `build_index` may still write its copy here; `build_index` removes it.
            shutil.rmtree(self.folder, ignore_errors=True)


def remove(folder: Path) -> None:
    """Delete the files of a collection that is not open. Raises StoreError if the disk reports an error."""
    with engine_errors(folder):
        (folder / "current").unlink()
        sync_folder(folder)
        shutil.rmtree(folder)


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StoreError(
            f"the disk is full or nearly full: {folder} has {free / 2**20:,.0f} MiB left, and this operation needs "
            f"{needed / 2**20:,.0f}; free disk space and run again; earlier writes are safe"
        )


def _new_name() -> str:
    return f"shard-{uuid.uuid4().hex}"


@contextmanager
def engine_errors(folder: Path) -> Iterator[None]:
    """Turn engine errors (bare Exceptions and panics) and disk errors into StoreError; let all others pass."""
    try:
        yield
    except BaseException as error:
        if type(error) is not Exception and not isinstance(error, OSError) and not is_rust_panic(error):
            raise
        raise StoreError(
            f"the edge store failed at {folder}: {error}; if the disk is full, free some space; if the folder is "
            "damaged, restore it or ingest into a new one"
        ) from error
