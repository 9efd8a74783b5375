"""Changes to files that survive a power cut, in SQLite's order.

    write the files -> sync the files -> sync their folders -> rename -> sync the parent folder -> delete the old files

A rename or a deletion that is not synced may reach the disk before the data it depends on.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path


def replace_text(path: Path, text: str) -> None:
    """Write a small file atomically and durably. Only one process at a time may write it."""
    # Unlike `atomic_write`, overwrites the temporary file of a killed process.
    scratch = path.with_name(f"{path.name}.partial")
    with scratch.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)
    sync_folder(path.parent)


def sync_tree(folder: Path) -> None:
    """Sync every file and folder below `folder`, and `folder` itself. Files come before the folder that lists them."""
    for place, _, names in os.walk(folder, topdown=False):
        for name in names:
            with (Path(place) / name).open("rb+") as file:  # Windows syncs only files that are open for writing
                os.fsync(file.fileno())
        sync_folder(Path(place))


def sync_folder(folder: Path) -> None:
    """Sync a folder's list of names. Does nothing where the system or the file system cannot."""
    if os.name == "nt":
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(opened)
