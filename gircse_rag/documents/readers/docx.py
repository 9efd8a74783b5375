"""Reads Word documents (.docx) as Markdown: mammoth (extra `docx`) makes HTML of them, which is read as a page."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from typing import Any

from gircse_rag.documents.document import Document
from gircse_rag.documents.readers.html import parse_html
from gircse_rag.documents.readers.markdown_writer import MarkdownWriter
from gircse_rag.documents.readers.source import MAX_BYTES, Source
from gircse_rag.errors import InputError, first_line, require

# Pictures, which are not read, make documents large.
_MAX_FILE = 8 * MAX_BYTES
# Unpacked XML of all parts. mammoth takes 27 times as much memory, and 1.4 s per megabyte (one x86 core).
_MAX_XML = 2 * MAX_BYTES
_OLD_WORD = b"\xd0\xcf\x11\xe0"


def read_docx(source: Source) -> Iterator[Document]:
    """Read a Word document as one Markdown document: headings, lists, tables, footnotes; no pictures.

    Raises:
        InputError: the file has a password, is damaged, unpacks to more than the limit, or has no text.
    """
    etree, mammoth = require("lxml.etree", "docx"), require("mammoth", "docx")
    data = source.read(_MAX_FILE)
    if data.startswith(_OLD_WORD):
        raise InputError("it has a password, or is a .doc; save it as .docx without one")
    try:
        skip_pictures = mammoth.images.img_element(_no_attributes)
        page = mammoth.convert_to_html(_copy_checked(data), convert_image=skip_pictures).value
    except InputError:
        raise
    except Exception as error:  # a damaged file makes mammoth raise almost any type
        raise InputError(f"not readable as .docx: {first_line(error) or type(error).__name__}") from error
    root = parse_html(page, etree) if page else None
    text = "" if root is None else MarkdownWriter().write(root, etree)
    if not text:
        raise InputError("no text; if its pages are pictures, run text recognition first")
    yield Document(source.id, text, markdown=True)


def _copy_checked(data: bytes) -> io.BytesIO:
    """Copy the XML of an archive, and nothing else: the relations may name any part as the document.

    Refuses XML that unpacks to more than `_MAX_XML`, or defines entities, which may grow without end. `zipfile` reads
    no more of a part than the size that it declares.
    """
    copy = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(copy, "w") as checked:
        parts = [part for part in archive.infolist() if part.filename.lower().endswith((".xml", ".rels"))]
        if (size := sum(part.file_size for part in parts)) > _MAX_XML:
            raise InputError(
                f"its XML unpacks to {size:,} bytes; the limit is {_MAX_XML // 2**20} MiB; split the document"
            )
        for part in parts:
            xml = archive.read(part)
            if b"<!DOCTYPE" in xml.replace(b"\0", b""):  # in UTF-16, every second byte is 0
                raise InputError(f"its part {part.filename!r} defines a document type, as Word never does")
            checked.writestr(part.filename, xml)
    return copy


def _no_attributes(image: Any) -> dict[str, str]:
    return {}
