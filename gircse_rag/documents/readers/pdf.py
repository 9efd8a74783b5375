"""Reads PDF with pypdf (extra `pdf`)."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator
from typing import Any

from gircse_rag.documents.document import Document
from gircse_rag.documents.readers.source import MAX_BYTES, Source
from gircse_rag.errors import InputError, require
from gircse_rag.install_hint import install_command

# pypdf would log a line to stderr for every damaged object that it repairs.
logging.getLogger("pypdf").addHandler(logging.NullHandler())

# Limit on the unpacked contents of all pages and of the forms (XObjects) drawn on them, each counted as often as it is
# drawn. Contents are 3 to 4 times as large as their text. pypdf parses a megabyte in 1.5 s (one AMD EPYC core).
_MAX_CONTENTS = 16 * MAX_BYTES
# Seconds per document: within the limit on contents, a small file with many forms takes minutes. A page is parsed to
# its end, in at most 12 s (AMD EPYC).
_MAX_SECONDS = 120.0
# Glyphs that the font maps to no letter, and what stands for each.
_UNMAPPED = re.compile("[\x01-\x08\x0e-\x1b\x7f]")
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def read_pdf(source: Source) -> Iterator[Document]:
    """Read a PDF as one document, pages separated by form feeds. Metadata: `pages`, `title`, `pages_without_text`, and
    `unmapped_glyphs`.

    With one document per page, an inserted page would change the ids of all later ones. With one document, unchanged
    chunks keep their vectors.

    A glyph that the font maps to no letter becomes U+FFFD and is counted in `unmapped_glyphs`. A page that has more of
    them than letters counts as a page without text.

    Raises:
        InputError: the file has a password, has no text, is damaged, unpacks to more than the limit, or takes too long.
    """
    pypdf = require("pypdf", "pdf")
    try:
        reader = pypdf.PdfReader(source.file)
        # A PDF with only an owner password opens with the empty user password.
        if reader.is_encrypted and not reader.decrypt(""):
            raise InputError("the file has a password; save it without one")
        pages = _extract_pages(reader)
        title = _clean(reader.metadata.title or "").strip() if reader.metadata else ""
    except pypdf.errors.LimitReachedError as error:
        raise InputError(f"unpacks to more than the limit: {error}") from error
    except pypdf.errors.DependencyError as error:
        raise InputError(f"the encryption needs a package: {install_command('pdf')} ({error})") from error
    except (InputError, OSError):
        raise
    except Exception as error:  # a damaged file makes pypdf raise almost any type
        raise InputError(f"not readable as PDF: {str(error) or type(error).__name__}") from error
    empty = [number for number, text in enumerate(pages, start=1) if not text.strip()]
    if len(empty) == len(pages):
        raise InputError(
            "no text: the pages are empty or scanned, or their fonts do not name their letters; "
            "run text recognition (ocrmypdf --force-ocr) first"
        )
    unmapped = sum(page.count(_REPLACEMENT) for page in pages)
    known = {"pages": len(pages), "title": title, "pages_without_text": empty, "unmapped_glyphs": unmapped}
    metadata = {name: value for name, value in known.items() if value}
    yield Document(source.id, "\n\f".join(pages), metadata, paged=True)


def _extract_pages(reader: Any) -> list[str]:
    texts: list[str] = []
    contents, left = _Contents(), MAX_BYTES
    # Unpacking is fast and parsing is slow, so contents that are too large are refused before anything is parsed.
    for number, page in enumerate(reader.pages, start=1):
        contents.check(page, number)
    for page in reader.pages:
        text = _clean(contents.extract_text(page))
        left -= len(text)
        if left < 0:
            raise InputError(f"the text is too large: the limit is {MAX_BYTES // 2**20} MiB; split the file")
        texts.append(text)
    return texts


class _Contents:
    """Extracts the text of pages, within `_MAX_CONTENTS` and `_MAX_SECONDS` for all of them."""

    def __init__(self) -> None:
        self._left = _MAX_CONTENTS
        self._deadline = time.monotonic() + _MAX_SECONDS

    def check(self, page: Any, number: int) -> None:
        contents = page.get_contents()
        size = 0 if contents is None else len(contents.get_data())
        # Parsing takes memory well above the size of the contents.
        if size > MAX_BYTES:
            raise InputError(f"page {number} unpacks to {size:,} bytes; the limit is {MAX_BYTES // 2**20} MiB")
        self._count(size)

    def extract_text(self, page: Any) -> str:
        extract_form = page.extract_xform_text

        def extract_counted(form: Any, *args: Any, **options: Any) -> Any:
            self._count(len(form.get_data()))
            return extract_form(form, *args, **options)

        page.extract_xform_text = extract_counted  # pypdf calls it for every form that the page draws
        text: str = page.extract_text()
        del page.extract_xform_text
        self._count(0)  # pypdf ignores errors inside forms
        return text

    def _count(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise InputError(
                f"the pages together unpack to more than {_MAX_CONTENTS // 2**20} MiB; "
                "split the file, or save only its text"
            )
        if time.monotonic() > self._deadline:
            raise InputError(f"takes more than {_MAX_SECONDS:.0f} s to read; split the file, or save only its text")


def _clean(text: str) -> str:
    """Make a page's text embeddable: no form feeds, control characters or lone surrogates."""
    text = text.replace("\f", "\n").replace("\0", "")
    # Joins pairs of surrogates into one character, and drops lone ones.
    text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "ignore")
    text, unmapped = _UNMAPPED.subn(_REPLACEMENT, text)
    return "" if 2 * unmapped > sum(map(len, text.split())) else text
