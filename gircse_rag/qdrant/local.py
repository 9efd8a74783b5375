"""Local mode: qdrant_client's embedded store, with a lock that is taken before anything is read.

    store/.gircse.lock    ours, held as long as the store is open
    store/.gircse-store   ours, see `trust`
    store/.lock, store/meta.json, store/collection/    Qdrant's

Qdrant reads `meta.json` and all points first and takes its lock then. By that time another process may have written and
closed; Qdrant's next write of `meta.json` would then drop that process's collections.
"""

from __future__ import annotations

import functools
import inspect
import json
import pickle
import sqlite3
import threading
import warnings
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from qdrant_client import QdrantClient, models
from qdrant_client.local.local_collection import LocalCollection
from qdrant_client.local.persistence import STORAGE_FILE_NAME
from qdrant_client.local.qdrant_local import QdrantLocal
from qdrant_client.local.utils import normalize_point_id

from gircse_rag.errors import GircseWarning, StoreError, first_line
from gircse_rag.qdrant.checksums import is_unit
from gircse_rag.qdrant.durable import replace_text
from gircse_rag.qdrant.folder_lock import already_open, lock_folder
from gircse_rag.qdrant.trust import check_trust, mark

META = "meta.json"
"""The file that marks a folder as a local store."""
_LOCK = ".gircse.lock"


def open_local(folder: Path, *, implicit: bool, repair: bool = False) -> QdrantClient:
    """Open the local store in a folder, or create it.

    Args:
        implicit: the caller did not name the folder.
        repair: delete the points that cannot be unpickled, with a warning (GircseWarning) per collection.

    Raises:
        StoreError: the store is open elsewhere, damaged or not accessible, or `check_trust` refuses it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        check_trust(folder, implicit=implicit)
        lock = lock_folder(folder, _LOCK)
    except OSError as error:
        raise _not_accessible(folder, error) from error
    try:
        mark(folder, implicit=implicit)
        if repair:
            _delete_unreadable_points(folder)
        return _open_locked(folder, lock)
    except BaseException:
        lock.release()
        raise


def _open_locked(folder: Path, lock: FileLock) -> QdrantClient:
    try:
        _ensure_meta(folder)
    except OSError as error:
        raise _not_accessible(folder, error) from error
    try:
        meta = (folder / META).read_bytes()
        client = QdrantClient(path=str(folder))
    except OSError as error:
        raise _not_accessible(folder, error) from error
    except Exception as error:  # unpickling a damaged point can raise anything
        if isinstance(error, RuntimeError) and "already accessed" in str(error):
            raise already_open(folder) from error
        raise _damaged(folder, error) from error
    if (folder / META).read_bytes() != meta:  # another QdrantClient, without our lock, closed while this one read
        client.close()
        raise already_open(folder)
    serialize_access(client)
    vars(client._client)["_folder_lock"] = lock
    return client


def _ensure_meta(folder: Path) -> None:
    """Create `meta.json` atomically. Qdrant does not, so a full disk or a kill may have left an empty one."""
    meta = folder / META
    if meta.exists() and meta.stat().st_size:
        return
    if meta.exists() and any((folder / "collection").glob("*")):
        raise StoreError(f"{meta} is empty, but there are collections; restore it from a backup")
    replace_text(meta, json.dumps({"collections": {}, "aliases": {}}))


def _not_accessible(folder: Path, error: Exception) -> StoreError:
    return StoreError(f"{folder} cannot be opened as a Qdrant store: {error}; name another folder")


def _damaged(folder: Path, error: Exception) -> StoreError:
    """The error for a store that cannot be read. Names the damaged file."""
    try:
        configs = json.loads((folder / META).read_bytes())["collections"]
        collections = {name: models.CreateCollection(**config) for name, config in configs.items()}
    except Exception as reason:
        advice = "restore it from a backup, or ingest into another folder"
        return StoreError(f"{folder / META} is damaged ({_describe(reason)}); {advice}")
    for name, config in collections.items():
        file = folder / "collection" / name / STORAGE_FILE_NAME
        try:
            LocalCollection(config, str(file.parent)).close()
        except Exception as reason:
            advice = (
                f"delete it (collection {name!r} is then empty)"
                if isinstance(reason, sqlite3.Error)
                else "delete the points that cannot be read "
                f"(gircse verify --collection {name} --path {folder} --repair, open_client(path, repair=True))"
            )
            return StoreError(
                f"{file} is damaged ({_describe(reason)}), so no collection of this store can be opened; restore the "
                f"file from a backup, or {advice} and ingest its documents again"
            )
    return _not_accessible(folder, error)


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


def _delete_unreadable_points(folder: Path) -> None:
    """Delete points that cannot be unpickled. The next ingest finds that they are missing."""
    for file in sorted((folder / "collection").glob(f"*/{STORAGE_FILE_NAME}")):
        try:
            with closing(sqlite3.connect(file)) as database, database:
                rows = database.execute("SELECT rowid, point FROM points")
                unreadable = [(row,) for row, data in rows if not _is_readable(data)]
                database.executemany("DELETE FROM points WHERE rowid = ?", unreadable)
        except sqlite3.Error:  # the file itself is damaged; opening the store says so
            continue
        if unreadable:
            warnings.warn(
                f"deleted {len(unreadable)} points of collection {file.parent.name!r} that could not be read; ingest "
                "its documents again",
                GircseWarning,
                stacklevel=5,
            )


def _is_readable(data: bytes) -> bool:
    try:
        point = pickle.loads(data)
        return isinstance(point.vector, dict) and normalize_point_id(point.id, validate=True) is not None
    except Exception:  # damaged data can raise anything
        return False


def find_file_damage(client: QdrantClient, collection: str) -> list[str]:
    """What SQLite finds wrong in the file of a collection in local mode; an empty list for other stores."""
    local = client._client
    if not isinstance(local, QdrantLocal):
        return []
    storage = local._get_collection(collection).storage
    if storage is None:  # in memory
        return []
    try:
        found = [str(row[0]) for row in storage.storage.execute("PRAGMA integrity_check(10)")]
    except sqlite3.DatabaseError as error:
        found = [str(error)]
    advice = "restore the file from a backup, or delete it and ingest its documents again"
    return [f"{storage.location} is damaged ({problem}); {advice}" for problem in found if problem != "ok"]


class _SerializedLocal(QdrantLocal):
    """Local mode made thread-safe: the loop below wraps each public method in a lock."""

    _access_lock: threading.RLock
    _folder_lock: FileLock | None = None
    """The lock of a store that `open_local` opened."""

    def upload_points(self, collection_name: str, points: Iterable[Any], *args: Any, **kwargs: Any) -> None:
        # Exhaust the iterator before locking: it may wait for another thread that needs this client.
        points = list(points)
        with self._access_lock:
            super().upload_points(collection_name, points, *args, **kwargs)

    def upsert(  # type: ignore[override]
        self, collection_name: str, points: Any, **kwargs: Any
    ) -> models.UpdateResult:
        """Write points. Vectors of unit length stay as they are, bit for bit, as on a server.

        Local mode stores a vector as it is given, but divides it by its length in memory. That changes the last bits
        of some vectors until the store is opened again.
        """
        with self._access_lock:
            result = super().upsert(collection_name, points, **kwargs)
            if isinstance(points, list) and not kwargs.get("update_filter") and not kwargs.get("update_mode"):
                _keep_unit_vectors(self._get_collection(collection_name), points)
            return result

    def close(self, **kwargs: Any) -> None:
        """Close the store, then release its folder, even if closing fails."""
        with self._access_lock:
            try:
                super().close(**kwargs)
            finally:
                if self._folder_lock is not None:
                    self._folder_lock.release()

    def __getstate__(self) -> dict[str, Any]:
        """State without the lock, which cannot be copied; `__setstate__` gives the copy its own."""
        return {**vars(self), "_access_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _access_lock=threading.RLock())


def _keep_unit_vectors(collection: LocalCollection, points: list[models.PointStruct]) -> None:
    for point in points:
        row = collection.ids.get(normalize_point_id(point.id))
        if row is None or not isinstance(point.vector, dict):
            continue
        for name, values in point.vector.items():
            if name in collection.vectors and is_unit(vector := np.asarray(values, dtype=np.float32)):
                collection.vectors[name][row] = vector


def _with_lock(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def locked(self: _SerializedLocal, *args: Any, **kwargs: Any) -> Any:
        with self._access_lock:
            return method(self, *args, **kwargs)

    return locked


for _name, _method in inspect.getmembers(QdrantLocal, inspect.isfunction):
    if not _name.startswith("_") and _name not in vars(_SerializedLocal):
        setattr(_SerializedLocal, _name, _with_lock(_method))


def serialize_access(client: QdrantClient) -> None:
    """Make a client safe for several threads: a client in local mode then runs one call at a time.

    Works in place, so the client is safe for every holder, such as LangChain. Does not wait for a call in progress.
    """
    local = client._client
    if type(local) is QdrantLocal:
        vars(local).setdefault("_access_lock", threading.RLock())  # setdefault is atomic: all threads get the same lock
        local.__class__ = _SerializedLocal
