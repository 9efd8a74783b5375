"""PDF, through pypdf (extra `pdf`)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from gircse_rag.documents.document import Document
from gircse_rag.documents.readers.source import MAX_BYTES, Source
from gircse_rag.errors import InputError, require

# pypdf's notes on what it mends would go to stderr, a line for every bad object.
logging.getLogger("pypdf").addHandler(logging.NullHandler())


def read_pdf(source: Source) -> Iterator[Document]:
    """One document a file; form feeds divide its pages. Metadata: `pages`, `title`, `pages_without_text`.

    A document of its own a page would cut the sentences that run over, and a page put in would rename all that follow;
    one document keeps the vectors of the chunks that stay.

    Raises:
        InputError: a password, no text, damaged, or larger than it may be when unpacked.
    """
    pypdf = require("pypdf", "pdf")
    try:
        reader = pypdf.PdfReader(source.file)
        # Without a password for reading, only one for changing, the password is empty.
        if reader.is_encrypted and not reader.decrypt(""):
            raise InputError("it has a password; save it without one")
        pages = _texts(reader)
        title = (reader.metadata.title or "").strip() if reader.metadata else ""
    except pypdf.errors.LimitReachedError as error:
        raise InputError(f"it unpacks to more than is read: {error}") from error
    except pypdf.errors.DependencyError as error:
        raise InputError(f'its encryption needs a package: pip install "gircse-rag[pdf]" ({error})') from error
    except (InputError, OSError):
        raise
    except Exception as error:  # pypdf lets a damaged file raise nearly anything
        raise InputError(f"not a PDF that can be read: {str(error) or type(error).__name__}") from error
    without = [number for number, text in enumerate(pages, start=1) if not text.strip()]
    if len(without) == len(pages):
        raise InputError("no text, only pictures of it, or nothing: run a text recognition (ocrmypdf) first")
    metadata: dict[str, Any] = {"pages": len(pages)}
    if title:
        metadata["title"] = title
    if without:
        metadata["pages_without_text"] = without
    yield Document(source.id, "\n\f".join(pages), metadata, paged=True)


def _texts(reader: Any) -> list[str]:
    texts: list[str] = []
    left = MAX_BYTES
    for number, page in enumerate(reader.pages, start=1):
        # Reading what draws a page takes a second a megabyte, and more memory than that.
        contents = page.get_contents()
        if contents is not None and (size := len(contents.get_data())) > MAX_BYTES:
            raise InputError(f"page {number} unpacks to {size:,} bytes, and at most {MAX_BYTES // 2**20} MiB are read")
        text = page.extract_text().replace("\f", "\n").replace("\0", "")
        left -= len(text)
        if left < 0:
            raise InputError(f"its text is too large: a document has at most {MAX_BYTES // 2**20} MiB; split it")
        texts.append(text)
    return texts
