"""The lock of an embedded store's folder: one client at a time, released when its process ends."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout

from gircse_rag.errors import StoreError


def lock_folder(folder: Path, name: str) -> FileLock:
    """Lock the file `name` in a store's folder without waiting. Any thread may release the lock.

    Raises:
        StoreError: another client holds it.
        OSError: the file cannot be created.
    """
    lock = FileLock(folder / name, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise already_open(folder) from error
    return lock


def already_open(folder: Path) -> StoreError:
    """The error for a store that another client has open."""
    return StoreError(
        f"the Qdrant store in {folder} is already open, and an embedded store allows one client at a time; close "
        "the other process, or run a Qdrant server and give its url"
    )
