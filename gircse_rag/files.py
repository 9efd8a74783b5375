"""A file that is there whole, or as it was."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A scratch path beside `path` that takes its place when the block ends without an error.

    The scratch file carries the process's id, so that two processes may write one file: the last to end wins. What
    has to outlive a power cut is for the block to flush (os.fsync); a killed process may leave the scratch behind.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield scratch
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
