"""Which local stores may be opened: local mode unpickles points, so a store that somebody else made can run code.

A store has a file of digests, made with a secret in the user's state folder, so a repository or an archive cannot bring
valid ones along:

    by the user      "made by this user"             enough for a path that the caller names
    by the folder    "made by this user, and here"   required of the default folder, which nobody names

The folder is identified by its inode, without the device: device numbers may change when the system restarts.
"""

from __future__ import annotations

import hmac
import os
import secrets
import warnings
from pathlib import Path

from filelock import FileLock
from platformdirs import user_state_path

from gircse_rag.errors import GircseWarning, StoreError
from gircse_rag.qdrant.durable import replace_text

MARK = ".gircse-store"
_HEADING = "Made by gircse-rag. Do not copy these lines: they say that points may be unpickled from here.\n"


def check_trust(folder: Path, *, implicit: bool) -> None:
    """Check an existing folder before anything in it is unpickled.

    A path that the caller names is consent: there is a warning (GircseWarning) unless this user made the store.

    Raises:
        StoreError: `implicit`, and this user did not make the store in this folder.
    """
    if _is_blank(folder):
        return
    by_user, by_folder = _is_marked(folder)
    if implicit and not by_folder:
        raise StoreError(
            f"gircse does not know who made the store in the default folder {folder}, and opening it unpickles its "
            "points, which can run code; if you made it or trust it, name the folder once "
            f"(--path {folder}, path={str(folder)!r})"
        )
    if not implicit and not by_user:
        warnings.warn(
            f"the store in {folder} was not made by gircse for this user; opening it unpickles its points, which can "
            "run code, so open only stores that you trust",
            GircseWarning,
            stacklevel=4,
        )


def mark(folder: Path, *, implicit: bool) -> None:
    """Record that this user made or trusts the store. Only one process at a time may do so.

    Raises:
        StoreError: `implicit`, and it cannot be recorded.
    """
    try:
        if not all(_is_marked(folder)):
            present = _read(folder) or _HEADING
            replace_text(folder / MARK, f"{present}{' '.join(_digests(folder))}\n")
    except OSError as error:
        if implicit:  # a named folder needs no mark
            raise StoreError(
                f"the default folder {folder} cannot be marked as yours ({error}), so it could not be opened again; "
                f"name the folder (--path {folder}, path={str(folder)!r})"
            ) from error


def _is_blank(folder: Path) -> bool:
    """Whether there is nothing to unpickle (a local store keeps all points below `collection`) and no link."""
    with os.scandir(folder) as entries:
        return not any(entry.name.lower() == "collection" or entry.is_symlink() for entry in entries)


def _is_marked(folder: Path) -> tuple[bool, bool]:
    """Whether the folder's mark is valid for the user, and for the user in this folder."""
    try:
        present = _read(folder).split()
        by_user, by_folder = _digests(folder)
    except OSError:
        return False, False
    return by_user in present, by_folder in present


def _read(folder: Path) -> str:
    try:
        return (folder / MARK).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""


def _digests(folder: Path) -> tuple[str, str]:
    """The valid digests: by the user, by the user and the folder."""
    secret, inode = _secret(), folder.stat().st_ino
    return hmac.digest(secret, b"user", "sha256").hex(), hmac.digest(secret, b"folder %d" % inode, "sha256").hex()


def _secret() -> bytes:
    """The user's secret, created at first use."""
    state = user_state_path("gircse-rag")
    if not state.is_absolute():  # a user without a home; a relative path may lie in a cloned repository
        raise OSError(f"the user's state folder {state} is not an absolute path")
    file = state / "store-secret"
    if not file.exists():
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        with FileLock(state / "store-secret.lock"):
            if not file.exists():
                replace_text(file, secrets.token_hex())
    return file.read_bytes()
