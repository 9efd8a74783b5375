from __future__ import annotations

import io
import zlib
from pathlib import Path

import pytest

from gircse_rag.qdrant.chunking import Chunker
from gircse_rag.qdrant.readers.source import MAX_BYTES
from tests.unit.qdrant.readers import read, read_one, reason
from tests.unit.qdrant.test_chunking import SPEC, TOKENIZER

fpdf = pytest.importorskip("fpdf")
pypdf = pytest.importorskip("pypdf")


def _pdf(path: Path, *pages: str, title: str | None = None) -> Path:
    made = fpdf.FPDF()
    made.set_font("helvetica", size=12)
    if title:
        made.set_title(title)
    for page in pages:
        made.add_page()
        if page:
            made.multi_cell(0, text=page)
    made.output(str(path))
    return path


def _encrypt(path: Path, user: str, owner: str, algorithm: str) -> Path:
    writer = pypdf.PdfWriter(clone_from=io.BytesIO(path.read_bytes()))
    writer.encrypt(user, owner, algorithm=algorithm)
    writer.write(path)
    return path


def _with_contents(path: Path, size: int) -> Path:
    """A page that is drawn by `size` bytes of white space, which hardly take any when compressed."""
    writer = pypdf.PdfWriter(clone_from=io.BytesIO(_pdf(path, "x").read_bytes()))
    stream = pypdf.generic.StreamObject()
    stream._data = zlib.compress(b" " * size)
    stream[pypdf.generic.NameObject("/Filter")] = pypdf.generic.NameObject("/FlateDecode")
    writer.pages[0][pypdf.generic.NameObject("/Contents")] = writer._add_object(stream)
    writer.write(path)
    assert path.stat().st_size < size / 500
    return path


def test_a_pdf_is_one_document_whose_chunks_know_their_page(tmp_path: Path) -> None:
    pages = ("First page, in a few words.", "", "Third page: " + "more words. " * 8)
    document = read_one(_pdf(tmp_path / "a.pdf", *pages, title="A paper"))
    assert document.id == "a.pdf" and document.paged
    assert document.metadata == {"pages": 3, "title": "A paper", "pages_without_text": [2]}
    assert [" ".join(page.split()) for page in document.text.split("\f")] == [" ".join(page.split()) for page in pages]
    chunks = Chunker(TOKENIZER, SPEC).cut(document)
    assert [chunk.page for chunk in chunks] == [1] + [3] * (len(chunks) - 1) and len(chunks) > 3


@pytest.mark.parametrize("algorithm", ["RC4-128", "AES-256"])
def test_a_password_for_reading_is_refused_and_one_for_changing_is_not(tmp_path: Path, algorithm: str) -> None:
    path = _pdf(tmp_path / "a.pdf", "Words.")
    assert "Words." in read_one(_encrypt(path, "", "owner", algorithm)).text
    path = _encrypt(_pdf(path, "Words."), "secret", "owner", algorithm)
    assert reason(path) == "it has a password; save it without one"


def test_pictures_of_text_are_no_text(tmp_path: Path) -> None:
    assert "no text" in reason(_pdf(tmp_path / "a.pdf", "", "")) and "ocrmypdf" in reason(tmp_path / "a.pdf")


@pytest.mark.parametrize("keep", [0, 4, 200, -300])
def test_a_broken_pdf_is_named_and_the_next_is_read(
    tmp_path: Path, keep: int, capfd: pytest.CaptureFixture[str]
) -> None:
    path = _pdf(tmp_path / "a.pdf", "Words.")
    path.write_bytes(path.read_bytes()[:keep])
    _pdf(tmp_path / "b.pdf", "Words.")
    documents, skipped = read(tmp_path)
    assert documents[-1].id == "b.pdf"
    assert len(documents) + len(skipped) == 2  # cut near its end, pypdf can mend it
    assert all("not a PDF that can be read" in s.reason for s in skipped) and (skipped or keep < 0)
    assert capfd.readouterr().err == ""


def test_any_damage_is_survived(tmp_path: Path) -> None:
    whole = _pdf(tmp_path / "a.pdf", "Words.").read_bytes()
    for place in range(0, len(whole), 37):
        (tmp_path / "a.pdf").write_bytes(whole[:place] + b"\xff<<[" + whole[place + 4 :])
        documents, skipped = read(tmp_path)
        assert len(documents) + len(skipped) == 1


@pytest.mark.parametrize(
    ("size", "expected"), [(MAX_BYTES + 1, "page 1 unpacks to 8,388,609 bytes"), (80_000_000, "unpacks to more")]
)
def test_a_page_that_unpacks_to_far_more_is_refused(tmp_path: Path, size: int, expected: str) -> None:
    assert expected in reason(_with_contents(tmp_path / "a.pdf", size))
