"""HTML as Markdown, through Beautiful Soup and markdownify (extra `html`): headings, lists, tables and code stay."""

from __future__ import annotations

import re
from collections.abc import Iterator

from gircse_rag.documents.document import Document
from gircse_rag.documents.readers.source import Source
from gircse_rag.errors import InputError, require

# What a reader of the page does not see, and the links around what they came for.
_UNSEEN = ["script", "style", "template", "noscript", "svg", "nav"]
_BLANK_LINES = re.compile(r"\n{3,}")


def read_html(source: Source) -> Iterator[Document]:
    """Of a page with one <main>, that; else its body. Metadata: `title`. The encoding is UTF-8 or the one declared.

    Of a link and a picture the words are kept, not the address.

    Raises:
        InputError: too large, wrongly encoded, nested too deep, odd beyond reading, or without text.
    """
    soup_module, markdownify = require("bs4", "html"), require("markdownify", "html")
    data = source.read()
    if b"\0" in data and not data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError("binary: it holds zero bytes")
    try:
        soup = soup_module.BeautifulSoup(_decoded(data), "html.parser")
        title = " ".join(soup.title.get_text().split()) if soup.title else ""
        for tag in soup(_UNSEEN):
            tag.decompose()
        mains = soup("main") or soup(role="main")
        part = mains[0] if len(mains) == 1 else soup.body or soup
        for tag in part("title"):
            tag.decompose()
        for picture in part("img"):
            picture.replace_with(picture.get("alt") or "")
        converter = markdownify.MarkdownConverter(
            heading_style="ATX", strip=["a"], escape_asterisks=False, escape_underscores=False
        )
        text = _BLANK_LINES.sub("\n\n", converter.convert_soup(part)).strip()
    except RecursionError as error:
        raise InputError("its elements are nested too deep") from error
    except InputError:
        raise
    except Exception as error:  # what is odd enough makes Beautiful Soup and markdownify raise errors of many kinds
        raise InputError(f"not HTML that can be read: {str(error) or type(error).__name__}") from error
    if not text:
        raise InputError("no text: is the page made by its scripts?")
    yield Document(source.id, text, {"title": title} if title else {}, markdown=True)


def _decoded(data: bytes) -> str:
    """A byte order mark decides, then UTF-8, then what the page declares: in this order none is taken for another."""
    from bs4.dammit import EncodingDetector

    stripped, marked = EncodingDetector.strip_byte_order_mark(data)
    declared = EncodingDetector.find_declared_encoding(data, is_html=True)
    for encoding in (marked, "utf-8", declared):
        try:
            if encoding:
                return stripped.decode(encoding)
        except (UnicodeError, LookupError):
            continue
    raise InputError(f"neither UTF-8 nor the encoding it declares ({declared or 'none'}); convert it first")
