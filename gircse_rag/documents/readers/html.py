"""Reads HTML as Markdown with Beautiful Soup and markdownify (extra `html`); keeps headings, lists, tables, code."""

from __future__ import annotations

import re
from collections.abc import Iterator

from gircse_rag.documents.document import Document
from gircse_rag.documents.readers.source import Source
from gircse_rag.errors import InputError, require

# Elements without visible text, and navigation links.
_INVISIBLE = ["script", "style", "template", "noscript", "svg", "nav"]
_BLANK_LINES = re.compile(r"\n{3,}")


def read_html(source: Source) -> Iterator[Document]:
    """Read the page's <main>, or its body unless there is exactly one <main>. Metadata: `title`.

    The encoding is UTF-8 or the declared one. Links and images keep their text but not their address.

    Raises:
        InputError: the page is too large, wrongly encoded, nested too deeply, malformed beyond parsing, or has no text.
    """
    soup_module, markdownify = require("bs4", "html"), require("markdownify", "html")
    data = source.read()
    if b"\0" in data and not data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError("binary: the file contains zero bytes")
    page = _decode(data)
    try:
        soup = soup_module.BeautifulSoup(page, "html.parser")
        title = " ".join(soup.title.get_text().split()) if soup.title else ""
        for tag in soup(_INVISIBLE):
            tag.decompose()
        mains = soup("main") or soup(role="main")
        content = mains[0] if len(mains) == 1 else soup.body or soup
        for tag in content("title"):
            tag.decompose()
        for image in content("img"):
            image.replace_with(image.get("alt") or "")
        converter = markdownify.MarkdownConverter(
            heading_style="ATX", strip=["a"], escape_asterisks=False, escape_underscores=False
        )
        text = _BLANK_LINES.sub("\n\n", converter.convert_soup(content)).strip()
    except RecursionError as error:
        raise InputError("elements are nested too deeply") from error
    except Exception as error:  # malformed pages make Beautiful Soup and markdownify raise many types
        raise InputError(f"not readable as HTML: {str(error) or type(error).__name__}") from error
    if not text:
        raise InputError("no text; the page is probably built by scripts: save it from a browser")
    yield Document(source.id, text, {"title": title} if title else {}, markdown=True)


def _decode(data: bytes) -> str:
    """Decode by byte order mark, else as UTF-8, else as declared. In this order no encoding passes for another."""
    from bs4.dammit import EncodingDetector

    stripped, from_mark = EncodingDetector.strip_byte_order_mark(data)
    declared = EncodingDetector.find_declared_encoding(data, is_html=True)
    for encoding in (from_mark, "utf-8", declared):
        try:
            if encoding:
                return stripped.decode(encoding)
        except (ValueError, LookupError):
            continue
    raise InputError(f"neither UTF-8 nor the declared encoding ({declared or 'none'}); convert the file first")
