from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gircse_rag.documents.chunking import Chunker
from gircse_rag.documents.readers import pdf
from gircse_rag.documents.readers.source import MAX_BYTES
from gircse_rag.errors import InputError
from gircse_rag.tokens import check_text
from tests.pdfs import encrypt, make_pdf, show, with_contents, with_operators
from tests.unit.documents.readers import read, read_one, reason
from tests.unit.documents.test_chunking import SPEC, TOKENIZER

pytest.importorskip("fpdf")
pypdf = pytest.importorskip("pypdf")


def test_a_pdf_is_one_document_whose_chunks_record_their_page(tmp_path: Path) -> None:
    pages = ("First page, in a few words.", "", "Third page: " + "more words. " * 8)
    document = read_one(make_pdf(tmp_path / "a.pdf", *pages, title="A paper"))
    assert document.id == "a.pdf" and document.paged
    assert document.metadata == {"pages": 3, "title": "A paper", "pages_without_text": [2]}
    assert [" ".join(page.split()) for page in document.text.split("\f")] == [" ".join(page.split()) for page in pages]
    chunks = Chunker(TOKENIZER, SPEC).cut(document)
    assert [chunk.page for chunk in chunks] == [1] + [3] * (len(chunks) - 1) and len(chunks) > 3


@pytest.mark.parametrize("algorithm", ["RC4-128", "AES-256"])
def test_a_password_for_reading_is_refused_and_one_for_editing_is_not(tmp_path: Path, algorithm: str) -> None:
    path = make_pdf(tmp_path / "a.pdf", "Words.")
    assert "Words." in read_one(encrypt(path, "", "owner", algorithm)).text
    path = encrypt(make_pdf(path, "Words."), "secret", "owner", algorithm)
    assert reason(path) == "the file has a password; save it without one"


def test_pages_without_text_are_reported_with_a_hint_to_ocr(tmp_path: Path) -> None:
    assert "no text" in reason(make_pdf(tmp_path / "a.pdf", "", "")) and "ocrmypdf" in reason(tmp_path / "a.pdf")


@pytest.mark.parametrize("keep", [0, 4, 200, -300])
def test_a_truncated_pdf_is_reported_and_the_next_is_read(
    tmp_path: Path, keep: int, capfd: pytest.CaptureFixture[str]
) -> None:
    path = make_pdf(tmp_path / "a.pdf", "Words.")
    path.write_bytes(path.read_bytes()[:keep])
    make_pdf(tmp_path / "b.pdf", "Words.")
    documents, skipped = read(tmp_path)
    assert documents[-1].id == "b.pdf"
    assert len(documents) + len(skipped) == 2  # pypdf can repair a file that lacks only its end
    assert all("not readable as PDF" in s.reason for s in skipped) and (skipped or keep < 0)
    assert capfd.readouterr().err == ""


def test_damage_at_any_offset_does_not_raise(tmp_path: Path) -> None:
    intact = make_pdf(tmp_path / "a.pdf", "Words.").read_bytes()
    for place in range(0, len(intact), 37):
        (tmp_path / "a.pdf").write_bytes(intact[:place] + b"\xff<<[" + intact[place + 4 :])
        documents, skipped = read(tmp_path)
        assert len(documents) + len(skipped) == 1


def test_an_error_without_a_message_is_reported_by_its_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_pdf(tmp_path / "a.pdf", "Words.")
    monkeypatch.setattr(pypdf, "PdfReader", lambda file: next(iter(())))
    assert reason(path) == "not readable as PDF: StopIteration"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "expected"), [(MAX_BYTES + 1, "page 1 unpacks to 8,388,609 bytes"), (80_000_000, "unpacks to more than")]
)
def test_a_page_that_unpacks_beyond_the_limit_is_refused(tmp_path: Path, size: int, expected: str) -> None:
    assert expected in reason(with_contents(tmp_path / "a.pdf", size))


@pytest.mark.parametrize("octal", [b"001", b"010", b"032", b"033", b"177"])
def test_a_glyph_without_a_letter_is_replaced_and_counted(tmp_path: Path, octal: bytes) -> None:
    path = with_operators(tmp_path / "a.pdf", show(b"first page"), show(b"a \\%s dot" % octal), show(b"last page"))
    document = read_one(path)
    assert check_text(document.text).split() == ["first", "page", "a", "\ufffd", "dot", "last", "page"]
    assert document.metadata == {"pages": 3, "unmapped_glyphs": 1}


def test_a_page_of_glyphs_without_letters_counts_as_empty(tmp_path: Path) -> None:
    unreadable = show(rb"\001\002\003!\004")
    document = read_one(with_operators(tmp_path / "a.pdf", show(b"words"), unreadable))
    assert document.metadata == {"pages": 2, "pages_without_text": [2]} and "!" not in document.text
    assert "their fonts do not name their letters" in reason(with_operators(tmp_path / "a.pdf", unreadable))


def test_surrogates_in_a_font_are_joined_or_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_pdf(tmp_path / "a.pdf", "x", title="T")
    monkeypatch.setattr(pypdf.PageObject, "extract_text", lambda page: "a\ud835\udc52 b\ud835 c")
    monkeypatch.setattr(pypdf.DocumentInformation, "title", "T\udc52\x7fitle")
    document = read_one(path)
    assert check_text(document.text) == "a\U0001d452 b c" and document.metadata["title"] == "T\ufffditle"


@pytest.mark.parametrize("begins", ["pages", "forms"])
def test_a_pdf_that_takes_too_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begins: str) -> None:
    """The time may run out before a page, or before a form, inside which pypdf ignores errors."""
    form = b"BT /F1 12 Tf (form) Tj ET"
    path = with_operators(tmp_path / "slow.pdf", b"/X Do /X Do", form=form)
    parse, begun = pypdf.PageObject.extract_text, []

    def run_out_of_time(page: Any, *arguments: Any) -> Any:
        begun.append(page)
        contents._deadline = 0.0
        return parse(page, *arguments)

    if begins == "pages":
        monkeypatch.setattr(pdf, "_MAX_SECONDS", 0.0)
        assert reason(path).startswith("takes more than 0 s to read")
        monkeypatch.undo()
        assert read_one(path).text.count("form") == 2
        return
    contents = pdf._Contents()
    monkeypatch.setattr(pypdf.PageObject, "extract_text", run_out_of_time)
    with pytest.raises(InputError, match="takes more than 120 s to read"):
        contents.extract_text(pypdf.PdfReader(path).pages[0])
    assert len(begun) == 1


@pytest.mark.slow
@pytest.mark.parametrize("drawn", ["pages", "forms"])
def test_a_large_stream_drawn_many_times_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn: str
) -> None:
    monkeypatch.setattr(pdf, "_MAX_CONTENTS", 2**20)
    large, path = show(b"word " * 60_000), tmp_path / "a.pdf"

    def draw(times: int) -> Path:
        if drawn == "pages":
            return with_operators(path, *[large] * times)
        return with_operators(path, b"/X Do " * times, form=large)

    assert "word word" in read_one(draw(3)).text
    assert reason(draw(4)).startswith("the pages together unpack to more than 1 MiB; split the file")
