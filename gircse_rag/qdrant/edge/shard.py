"""One collection of an edge store: a shard of the engine, its folder, and the index that a child process builds.

    NAME/current         "shard-3f2a...": which folder holds the shard; the collection is there if this file is
    NAME/shard-3f2a...   the engine's

What a collection says of itself (metadata, vectors) is in one reserved point. It has no vector, so no search can return
it; counts and scrolls leave it out.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import qdrant_edge as edge
from qdrant_client import models

from gircse_rag.errors import StoreError

RESERVED = str(uuid.uuid5(uuid.NAMESPACE_URL, "gircse-rag/edge/collection"))
"""The id of the point that holds what a collection says of itself."""

_FLUSH_EVERY = 20_000
"""Points. What is not flushed is replayed from the write-ahead log when the shard is opened."""
_INDEX_FROM_KB = 10_000
"""A segment of more kilobytes of vectors gets an index (the engine's own default); below it the scan is as quick."""
_ROOM_BYTES = 128 * 2**20
"""Free on the disk, or nothing is written: the engine writes through memory maps, and a disk that fills up under one
kills the process (SIGBUS). A request of ours takes less than half of it."""
_OPTIMIZE = """
import sys, qdrant_edge
shard = qdrant_edge.EdgeShard.load(sys.argv[1])
changed = shard.optimize()
shard.close()
print(changed)
"""


class EdgeShard:
    """One collection. Its methods may be called from several threads; `engine` lets them in one at a time."""

    def __init__(self, folder: Path) -> None:
        """Open it, and clear away what a killed `build_index` left.

        Raises:
            StoreError: it cannot be read.
        """
        self.folder = folder
        self._lock = threading.RLock()
        self._writes = self._unflushed = 0
        self._closed = False
        with engine_errors(folder):
            self._name = (folder / "current").read_text()
            self._engine = edge.EdgeShard.load(str(folder / self._name))
            for left in folder.glob("shard-*"):  # only now: if `current` cannot be read, one of them may be whole
                if left.name != self._name:
                    shutil.rmtree(left, ignore_errors=True)

    @classmethod
    def create(cls, folder: Path, about: dict[str, Any]) -> EdgeShard:
        """Make a collection; it is there once it is whole. `about`: see the property.

        Raises:
            StoreError: the engine or the disk refuses.
        """
        vectors = {
            name: edge.EdgeVectorParams(size=size, distance=getattr(edge.Distance, distance))
            for name, (size, distance) in about["vectors"].items()
        }
        with engine_errors(folder):
            shutil.rmtree(folder, ignore_errors=True)  # what was killed in here
            name = _new_name()
            (folder / name).mkdir(parents=True)
            _check_room(folder, _ROOM_BYTES)
            optimizers = edge.EdgeOptimizersConfig(indexing_threshold=_INDEX_FROM_KB)
            config = edge.EdgeConfig(vectors=vectors, optimizers=optimizers)
            engine = edge.EdgeShard.create(str(folder / name), config)
            engine.update(edge.UpdateOperation.upsert_points([edge.Point(RESERVED, {}, about)]))
            engine.close()
            replace_text(folder / "current", name)
        return cls(folder)

    @property
    def about(self) -> dict[str, Any]:
        """What the collection says of itself: {"metadata": {...}, "vectors": {name: [size, distance]}}."""
        with self.engine() as engine:
            (point,) = engine.retrieve([RESERVED], with_payload=True, with_vector=False)
            return dict(point.payload or {})

    @contextmanager
    def engine(self) -> Iterator[edge.EdgeShard]:
        """The engine's shard, for one caller at a time.

        Raises:
            StoreError: it is closed, or what the engine says went wrong.
        """
        with self._lock, engine_errors(self.folder):
            if self._closed:
                raise StoreError(f"the collection in {self.folder} was closed or deleted meanwhile; ask the store anew")
            yield self._engine

    def write(self, operation: edge.UpdateOperation, points: int = 1) -> models.UpdateResult:
        """Do an update. When this returns it is in the write-ahead log, and outlives the process.

        Raises:
            StoreError: the disk is nearly full, or what the engine says went wrong.
        """
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
        """See `EdgeClient.build_index`."""
        floats = sum(size for size, _ in self.about["vectors"].values())
        with self.engine() as engine:
            info = engine.info()
            if (info.points_count - info.indexed_vectors_count) * floats * 4 <= _INDEX_FROM_KB * 1024:
                return False
            engine.flush()
            self._unflushed = 0
            writes, copy = self._writes, self.folder / _new_name()
            size = sum(file.stat().st_size for file in (self.folder / self._name).rglob("*") if file.is_file())
            _check_room(self.folder, 2 * size + _ROOM_BYTES)  # the copy, and the index that is made of it
            shutil.copytree(self.folder / self._name, copy)
        try:
            child = subprocess.run([sys.executable, "-c", _OPTIMIZE, str(copy)], capture_output=True, text=True)
            with self.engine() as engine:
                if child.returncode:
                    raise StoreError(f"indexing {self.folder} failed; it is as it was. {child.stderr.strip()[-300:]}")
                if self._writes != writes or child.stdout.strip() != "True":
                    return False
                fresh, old = edge.EdgeShard.load(str(copy)), self._name
                try:
                    replace_text(self.folder / "current", copy.name)
                finally:  # an interrupt may come when `current` is already another: what it names is the collection
                    if self._is_current(copy):
                        self._engine, self._name = fresh, copy.name
                engine.close()
                shutil.rmtree(self.folder / old, ignore_errors=True)
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
        """Flush, and release the folder, also if the flush fails.

        Raises:
            StoreError: what the engine says went wrong.
        """
        with self.engine() as engine:
            self._closed = True
            try:
                engine.flush()
            finally:
                engine.close()

    def delete(self) -> None:
        """Close it, and remove it from the disk.

        Raises:
            StoreError: what the engine or the disk says went wrong.
        """
        with self.engine() as engine:
            (self.folder / "current").unlink()  # from here on there is no such collection
            self._closed = True
            engine.close()  # without a flush: a full disk must not keep it from making room
            shutil.rmtree(self.folder / self._name)
            # The child of a `build_index` may be writing its copy in here still; `build_index` removes that.
            shutil.rmtree(self.folder, ignore_errors=True)


def remove(folder: Path) -> None:
    """Remove a collection that is not open.

    Raises:
        StoreError: the disk refuses.
    """
    with engine_errors(folder):
        (folder / "current").unlink()
        shutil.rmtree(folder)


def replace_text(path: Path, text: str) -> None:
    """Write a small file whole or not at all."""
    # Not `atomic_write`: one process at a time has the store, and here what a killed one left is written over.
    scratch = path.with_name(f"{path.name}.partial")
    with scratch.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StoreError(
            f"the disk is full, or nearly: {folder} has {free / 2**20:,.0f} MiB left, and an edge store needs "
            f"{needed / 2**20:,.0f} for this; make room and run again, what was written before is safe"
        )


def _new_name() -> str:
    return f"shard-{uuid.uuid4().hex}"


@contextmanager
def engine_errors(folder: Path) -> Iterator[None]:
    """The engine raises bare Exceptions, with a message; what has a class of its own is not the engine's."""
    try:
        yield
    except Exception as error:
        if type(error) is not Exception and not isinstance(error, OSError):
            raise
        raise StoreError(
            f"the edge store says of {folder}: {error}; if the disk is full make room, if the folder is damaged "
            "restore it, or ingest again into another"
        ) from error
