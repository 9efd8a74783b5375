"""Modules that moved out of `gircse_rag.qdrant` can still be imported from their old place, with a warning."""

from __future__ import annotations

import importlib
import sys

import pytest

from gircse_rag import documents


def test_the_chunker_can_be_imported_from_its_old_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "gircse_rag.qdrant.chunking", raising=False)
    with pytest.warns(DeprecationWarning, match=r"qdrant\.chunking moved to gircse_rag\.documents") as warned:
        old = importlib.import_module("gircse_rag.qdrant.chunking")
    assert len(warned) == 1
    assert old.Chunker is documents.Chunker and old.Chunk is documents.Chunk


def test_the_warning_names_the_importing_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "gircse_rag.qdrant.chunking", raising=False)
    with pytest.warns(DeprecationWarning) as warned:
        from gircse_rag.qdrant.chunking import Chunker  # noqa: F401
    assert warned[0].filename == __file__
