"""Atomic file writes, and text files that may be gzipped."""

from __future__ import annotations

import contextlib
import gzip
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO, cast


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a scratch path that replaces `path` if the block ends without an error.

    The scratch file's name contains the process id, so two processes may write one file: the last one to finish wins.
    Flush inside the block (os.fsync) to survive a power cut. Only kill -9 leaves a scratch file behind.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield scratch
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


@contextlib.contextmanager
def rust_errors() -> Iterator[None]:
    """Raise OSError in place of what libraries in Rust raise when they cannot read or write a file.

    safetensors raises SafetensorError, tokenizers a bare Exception. Both end in "(os error 28)", as Rust writes it.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) or not (code := re.search(r"\(os error (\d+)\)", str(error))):
            raise
        number = int(code[1])
        raise OSError(number, os.strerror(number)) from error


def open_text(path: Path, newline: str | None = None) -> TextIO:
    """Open a UTF-8 file for reading, plain or gzipped (.gz); `newline` as in `open`."""
    opener = gzip.open if path.suffix == ".gz" else open
    return cast(TextIO, opener(path, "rt", encoding="utf-8", newline=newline))
