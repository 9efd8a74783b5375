"""PDFs for tests. Each helper skips its test if fpdf or pypdf is not installed."""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from typing import Any

import pytest


def make_pdf(path: Path, *pages: str, title: str | None = None) -> Path:
    """Write a PDF with one page per text; an empty string gives a page without text."""
    pdf: Any = pytest.importorskip("fpdf").FPDF()
    pdf.set_font("helvetica", size=12)
    if title:
        pdf.set_title(title)
    for page in pages:
        pdf.add_page()
        if page:
            pdf.multi_cell(0, text=page)
    pdf.output(str(path))
    return path


def encrypt(path: Path, user: str, owner: str, algorithm: str) -> Path:
    """Encrypt the file in place, with a password for reading (`user`) and one for editing (`owner`)."""
    writer = _writer(path)
    writer.encrypt(user, owner, algorithm=algorithm)
    writer.write(path)
    return path


def with_contents(path: Path, size: int) -> Path:
    """Write a PDF whose one page unpacks to `size` bytes of white space, from a far smaller file."""
    pypdf: Any = pytest.importorskip("pypdf")
    writer = _writer(make_pdf(path, "x"))
    stream = pypdf.generic.StreamObject()
    stream._data = zlib.compress(b" " * size)
    stream[pypdf.generic.NameObject("/Filter")] = pypdf.generic.NameObject("/FlateDecode")
    writer.pages[0][pypdf.generic.NameObject("/Contents")] = writer._add_object(stream)
    writer.write(path)
    assert path.stat().st_size < size / 500
    return path


def with_operators(path: Path, *pages: bytes, form: bytes = b"") -> Path:
    """Write a PDF whose pages have these operators, with the font /F1 and the form /X. Equal pages share one stream."""
    pypdf: Any = pytest.importorskip("pypdf")
    from pypdf.generic import DictionaryObject, NameObject

    writer = _writer(make_pdf(path, *["x"] * len(pages)))

    def add_stream(data: bytes, **entries: Any) -> Any:
        stream = pypdf.generic.DecodedStreamObject()
        stream.set_data(data)
        stream.update({NameObject(f"/{name}"): value for name, value in entries.items()})
        return writer._add_object(stream)

    streams = {operators: add_stream(operators) for operators in pages}
    for page, operators in zip(writer.pages, pages, strict=True):
        page[NameObject("/Contents")] = streams[operators]
        fonts = page["/Resources"]["/Font"]
        drawn = add_stream(form, Subtype=NameObject("/Form"), Resources=DictionaryObject({NameObject("/Font"): fonts}))
        resources = {NameObject("/Font"): fonts, NameObject("/XObject"): DictionaryObject({NameObject("/X"): drawn})}
        page[NameObject("/Resources")] = DictionaryObject(resources)
    writer.write(path)
    return path


def show(text: bytes) -> bytes:
    """The operators that show `text`, the inside of a PDF string."""
    return b"BT /F1 12 Tf 20 200 Td (%s) Tj ET" % text


def _writer(path: Path) -> Any:
    return pytest.importorskip("pypdf").PdfWriter(clone_from=io.BytesIO(path.read_bytes()))
