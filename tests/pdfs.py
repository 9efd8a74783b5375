"""PDFs for tests, made on the spot; a test that asks for one is skipped where fpdf or pypdf is not installed."""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from typing import Any

import pytest


def make_pdf(path: Path, *pages: str, title: str | None = None) -> Path:
    """A page for each text; an empty one is a page without text."""
    made: Any = pytest.importorskip("fpdf").FPDF()
    made.set_font("helvetica", size=12)
    if title:
        made.set_title(title)
    for page in pages:
        made.add_page()
        if page:
            made.multi_cell(0, text=page)
    made.output(str(path))
    return path


def encrypt(path: Path, user: str, owner: str, algorithm: str) -> Path:
    """The same file with a password for reading (`user`) and one for changing (`owner`)."""
    writer = _writer(path)
    writer.encrypt(user, owner, algorithm=algorithm)
    writer.write(path)
    return path


def with_contents(path: Path, size: int) -> Path:
    """A page that is drawn by `size` bytes of white space, which hardly take any when compressed."""
    pypdf: Any = pytest.importorskip("pypdf")
    writer = _writer(make_pdf(path, "x"))
    stream = pypdf.generic.StreamObject()
    stream._data = zlib.compress(b" " * size)
    stream[pypdf.generic.NameObject("/Filter")] = pypdf.generic.NameObject("/FlateDecode")
    writer.pages[0][pypdf.generic.NameObject("/Contents")] = writer._add_object(stream)
    writer.write(path)
    assert path.stat().st_size < size / 500
    return path


def _writer(path: Path) -> Any:
    return pytest.importorskip("pypdf").PdfWriter(clone_from=io.BytesIO(path.read_bytes()))
