"""Helpers that the tests of the readers share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gircse_rag.qdrant import Document, SkippedFile, read_documents


def read(path: Path, **options: Any) -> tuple[list[Document], list[SkippedFile]]:
    found = list(read_documents(path, **options))
    return [d for d in found if isinstance(d, Document)], [s for s in found if isinstance(s, SkippedFile)]


def read_one(path: Path, **options: Any) -> Document:
    (document,), skipped = read(path, **options)
    assert skipped == []
    return document


def reason(path: Path, **options: Any) -> str:
    """Return why the file was skipped; it must give no document."""
    documents, (skipped,) = read(path, **options)
    assert documents == [] and skipped.path == str(path)
    return skipped.reason
