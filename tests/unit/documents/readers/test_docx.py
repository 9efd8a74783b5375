from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from gircse_rag.documents import Chunker
from tests.unit.documents.readers import read, read_one, reason
from tests.unit.documents.test_chunking import SPEC, TOKENIZER

pytest.importorskip("mammoth", reason="the docx extra is not installed")

_TYPES = """<?xml version="1.0"?><Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">
<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>
<Override PartName="/word/document.xml"
 ContentType="application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"/></Types>"""
_RELATIONS = """<?xml version="1.0"?><Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">
<Relationship Id="r1" Target="word/document.xml"
 Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument"/></Relationships>"""
_NAMESPACE = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"


def paragraph(text: str, style: str = "") -> str:
    properties = f'<w:pPr><w:pStyle w:val="{style}"/></w:pPr>' if style else ""
    return f"<w:p>{properties}<w:r><w:t>{text}</w:t></w:r></w:p>"


def write_docx(path: Path, body: str, *, before: str = "") -> Path:
    """A minimal Word document, compressed."""
    document = f'<?xml version="1.0"?>{before}<w:document xmlns:w="{_NAMESPACE}"><w:body>{body}</w:body></w:document>'
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("[Content_Types].xml", _TYPES)
        archive.writestr("_rels/.rels", _RELATIONS)
        archive.writestr("word/document.xml", document)
    return path


def test_headings_and_tables_are_kept(tmp_path: Path) -> None:
    rows = "".join(
        "<w:tr>" + "".join(f"<w:tc>{paragraph(cell)}</w:tc>" for cell in row) + "</w:tr>"
        for row in (("a", "b"), ("1", "2"))
    )
    body = paragraph("Guide", "Heading1") + paragraph("Open it &amp; wait.") + f"<w:tbl>{rows}</w:tbl>"
    document = read_one(write_docx(tmp_path / "a.docx", body))
    assert document.text == "# Guide\n\nOpen it & wait.\n\n| a | b |\n| --- | --- |\n| 1 | 2 |"
    assert document.markdown and {each.headings for each in Chunker(TOKENIZER, SPEC).cut(document)} == {("Guide",)}


def test_a_damaged_file_is_refused_and_the_next_is_read(tmp_path: Path) -> None:
    data = write_docx(tmp_path / "b.docx", paragraph("good")).read_bytes()
    for name, damaged in (
        ("a", data[: len(data) // 2]),
        ("c", b""),
        ("d", b"PK\x03\x04"),
        ("e", data[:300] + data[320:]),
    ):
        (tmp_path / f"{name}.docx").write_bytes(damaged)
    documents, skipped = read(tmp_path)
    assert [each.text for each in documents] == ["good"] and len(skipped) == 4
    assert all("not readable as .docx" in each.reason for each in skipped)


def test_other_archives_and_passwords_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.docx").write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 600)
    assert "it has a password, or is a .doc" in reason(tmp_path / "a.docx")
    with zipfile.ZipFile(tmp_path / "b.docx", "w") as archive:
        archive.writestr("a.txt", "words")
    assert "not readable as .docx" in reason(tmp_path / "b.docx")
    assert "no text" in reason(write_docx(tmp_path / "c.docx", "<w:p/>"))


def test_bombs_are_refused(tmp_path: Path) -> None:
    bomb = write_docx(tmp_path / "a.docx", " " * (16 * 2**20))
    assert bomb.stat().st_size < 100_000
    assert "its XML unpacks to 16,777," in reason(bomb)
    entities = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>'
    assert "defines a document type" in reason(write_docx(tmp_path / "b.docx", paragraph("&b;"), before=entities))
    assert "not readable" in reason(write_docx(tmp_path / "c.docx", "<w:p>" * 5000 + "</w:p>" * 5000))


def test_a_part_under_another_name_is_refused(tmp_path: Path) -> None:
    """The relations may name any part as the document, beside the parts whose size and entities are checked."""
    document = f'<w:document xmlns:w="{_NAMESPACE}"><w:body>{paragraph("hidden")}</w:body></w:document>'
    with zipfile.ZipFile(tmp_path / "a.docx", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("[Content_Types].xml", _TYPES.replace("document.xml", "document.bin"))
        archive.writestr("_rels/.rels", _RELATIONS.replace("document.xml", "document.bin"))
        archive.writestr("word/document.bin", document)
    assert "not readable as .docx" in reason(tmp_path / "a.docx")


def test_document_types_are_refused_in_every_encoding(tmp_path: Path) -> None:
    text = f'<!DOCTYPE w [<!ENTITY e "{"x" * 50}">]><w:document xmlns:w="{_NAMESPACE}"><w:body/></w:document>'
    for encoding in ("utf-8", "utf-16", "utf-16-le", "utf-16-be"):
        path = tmp_path / f"{encoding}.docx"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("[Content_Types].xml", _TYPES)
            archive.writestr("_rels/.rels", _RELATIONS)
            archive.writestr("word/document.xml", text.encode(encoding))
        assert "defines a document type" in reason(path)
