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
import sqlite3
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from filelock import FileLock
from qdrant_client import QdrantClient
from qdrant_client.local.qdrant_local import QdrantLocal

from gircse_rag.errors import StoreError
from gircse_rag.qdrant.durable import replace_text
from gircse_rag.qdrant.folder_lock import already_open, lock_folder
from gircse_rag.qdrant.trust import check_trust, mark

META = "meta.json"
"""The file that marks a folder as a local store."""
_LOCK = ".gircse.lock"


def open_local(folder: Path, *, implicit: bool) -> QdrantClient:
    """Open the local store in a folder, or create it. `implicit`: the caller did not name the folder.

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
        return _open_locked(folder, lock)
    except BaseException:
        lock.release()
        raise


def _open_locked(folder: Path, lock: FileLock) -> QdrantClient:
    try:
        _ensure_meta(folder)
        meta = (folder / META).read_bytes()
        client = QdrantClient(path=str(folder))
    except RuntimeError as error:
        if "already accessed" not in str(error):
            raise
        raise already_open(folder) from error
    except (OSError, ValueError, sqlite3.Error) as error:
        raise _not_accessible(folder, error) from error
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
        raise ValueError(f"its {META} is empty, but there are collections; restore {META}")
    replace_text(meta, json.dumps({"collections": {}, "aliases": {}}))


def _not_accessible(folder: Path, error: Exception) -> StoreError:
    return StoreError(f"{folder} cannot be opened as a Qdrant store: {error}; name another folder")


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
