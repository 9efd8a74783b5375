"""Atomic file writes, and text files that may be gzipped."""

from __future__ import annotations

import contextlib
import gzip
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO, cast


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a scratch path that replaces `path` if the block ends without an error.

    The scratch file's name contains the process id, so two processes may write one file: the last one to finish wins.
    Flush inside the block (os.fsync) to survive a power cut. A killed process may leave its scratch file behind.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield scratch
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def open_text(path: Path, newline: str | None = None) -> TextIO:
    """Open a UTF-8 file for reading, plain or gzipped (.gz); `newline` as in `open`."""
    opener = gzip.open if path.suffix == ".gz" else open
    return cast(TextIO, opener(path, "rt", encoding="utf-8", newline=newline))
