"""Reads PDF with pypdf (extra `pdf`)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from gircse_rag.documents.document import Document
from gircse_rag.documents.readers.source import MAX_BYTES, Source
from gircse_rag.errors import InputError, require

# pypdf would log a line to stderr for every damaged object that it repairs.
logging.getLogger("pypdf").addHandler(logging.NullHandler())


def read_pdf(source: Source) -> Iterator[Document]:
    """Read a PDF as one document, pages separated by form feeds. Metadata: `pages`, `title`, `pages_without_text`.

    One document per page would cut sentences at page ends, and an inserted page would change the ids of all later ones.
    With one document, unchanged chunks keep their vectors.

    Raises:
        InputError: the file has a password, has no text, is damaged, or unpacks to more than the limit.
    """
    pypdf = require("pypdf", "pdf")
    try:
        reader = pypdf.PdfReader(source.file)
        # A PDF with only an owner password opens with the empty user password.
        if reader.is_encrypted and not reader.decrypt(""):
            raise InputError("the file has a password; save it without one")
        pages = _extract_pages(reader)
        title = (reader.metadata.title or "").strip() if reader.metadata else ""
    except pypdf.errors.LimitReachedError as error:
        raise InputError(f"unpacks to more than the limit: {error}") from error
    except pypdf.errors.DependencyError as error:
        raise InputError(f'the encryption needs a package: pip install "gircse-rag[pdf]" ({error})') from error
    except (InputError, OSError):
        raise
    except Exception as error:  # a damaged file makes pypdf raise almost any type
        raise InputError(f"not readable as PDF: {str(error) or type(error).__name__}") from error
    empty = [number for number, text in enumerate(pages, start=1) if not text.strip()]
    if len(empty) == len(pages):
        raise InputError("no text: the pages are empty or scanned; run text recognition (ocrmypdf) first")
    known = {"pages": len(pages), "title": title, "pages_without_text": empty}
    metadata = {name: value for name, value in known.items() if value}
    yield Document(source.id, "\n\f".join(pages), metadata, paged=True)


def _extract_pages(reader: Any) -> list[str]:
    texts: list[str] = []
    left = MAX_BYTES
    for number, page in enumerate(reader.pages, start=1):
        # Parsing page contents takes one second per megabyte, and memory well above their size.
        contents = page.get_contents()
        if contents is not None and (size := len(contents.get_data())) > MAX_BYTES:
            raise InputError(f"page {number} unpacks to {size:,} bytes; the limit is {MAX_BYTES // 2**20} MiB")
        text = page.extract_text().replace("\f", "\n").replace("\0", "")
        left -= len(text)
        if left < 0:
            raise InputError(f"the text is too large: the limit is {MAX_BYTES // 2**20} MiB; split the file")
        texts.append(text)
    return texts
