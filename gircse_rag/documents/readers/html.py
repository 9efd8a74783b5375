"""Reads HTML as Markdown with lxml (extra `html`); keeps headings, lists, tables, code."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from typing import Any

from gircse_rag.documents.document import Document
from gircse_rag.documents.readers.markdown_writer import MarkdownWriter
from gircse_rag.documents.readers.source import Source
from gircse_rag.errors import InputError, require

# Elements without visible text, and navigation links.
_INVISIBLE = ("script", "style", "template", "noscript", "svg", "nav")
_BYTE_ORDER_MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
# A page that can be read as ASCII as far as its <meta> is not UTF-16; "replacement" stands for unsafe encodings.
_NOT_DECLARABLE = ("utf-8", "utf-16le", "utf-16be", "replacement")
# lxml's time grows with the square of the attributes of one tag: 0.3 s for these, 4.5 s for 40,000 (one AMD EPYC core).
_MAX_ATTRIBUTES = 10_000
_QUOTED = re.compile(r""""[^"]*"|'[^']*'""")
_XML_ENCODING = re.compile(rb"""\s*<\?xml\s[^>]*?encoding\s*=\s*["']([^"']*)""")
_CHARSET = re.compile(r"""charset\s*=\s*["']?([^\s"';]+)""", re.IGNORECASE)


def read_html(source: Source) -> Iterator[Document]:
    """Read the page's <main>, or all of it unless there is exactly one <main>. Metadata: `title`.

    The encoding is UTF-8 or the declared one. Links and images keep their text but not their address.

    Raises:
        InputError: the page is too large, wrongly encoded, nested too deeply, or has no text.
    """
    etree = require("lxml.etree", "html")
    webencodings = require("webencodings", "html")
    page = parse_html(_decode(source.read(), etree, webencodings), etree)
    title, text = "", ""
    if page is not None:
        etree.strip_elements(page, *_INVISIBLE, with_tail=False)
        heading = page.find(".//title")
        title = " ".join("".join(heading.itertext()).replace("\xad", "").split()) if heading is not None else ""
        etree.strip_elements(page, "title", with_tail=False)
        mains = page.findall(".//main") or page.findall(".//*[@role='main']")
        text = MarkdownWriter().write(mains[0] if len(mains) == 1 else page, etree)
    if not text:
        raise InputError("no text; the page is probably built by scripts: save it from a browser")
    yield Document(source.id, text, {"title": title} if title else {}, markdown=True)


def parse_html(markup: str, etree: Any) -> Any:
    """Return the root element, without comments; None if there is none.

    Raises:
        InputError: elements are nested deeper than lxml supports (2,000 levels), or a tag has too many attributes.
    """
    for part in markup.split(">"):
        tag = part[part.rfind("<") :]
        if len(tag) > _MAX_ATTRIBUTES and len(set(_QUOTED.sub(" ", tag).split())) > _MAX_ATTRIBUTES:
            raise InputError(f"a tag has more than {_MAX_ATTRIBUTES:,} attributes; its '>' is probably missing, add it")
    # `huge_tree` raises the limit from 255 levels. An element without an end tag nests everything below it.
    parser = etree.HTMLParser(encoding="utf-8", huge_tree=True, remove_comments=True, remove_pis=True)
    root = etree.fromstring(markup.encode(), parser)
    if any(entry.type_name == "ERR_RESOURCE_LIMIT" for entry in parser.error_log):
        raise InputError("elements are nested too deeply, perhaps because end tags are missing; repair the page first")
    if root is not None:
        root.extend(list(root.itersiblings()))  # lxml puts what follows </html> beside it
    return root


def _decode(data: bytes, etree: Any, webencodings: Any) -> str:
    """Decode by byte order mark, else as UTF-8, else as declared. In this order no encoding passes for another.

    Labels mean what they mean to browsers (https://encoding.spec.whatwg.org): "iso-8859-1" is windows-1252.
    """
    mark = next((mark for mark in _BYTE_ORDER_MARKS if data.startswith(mark)), b"")
    text = _decode_as(data, codecs.lookup(_BYTE_ORDER_MARKS.get(mark, "utf-8")))
    declared = None
    # ISO-2022-JP is the one encoding that passes for UTF-8: it is ASCII with escape sequences.
    if not mark and (text is None or "\x1b" in text):
        declared = _find_label(data, etree)
        encoding = webencodings.lookup(declared)
        if encoding is not None and (text is None or encoding.name == "iso-2022-jp"):
            text = None if encoding.name in _NOT_DECLARABLE else _decode_as(data, encoding.codec_info)
    if text is None:
        raise InputError(f"neither UTF-8 nor the declared encoding ({declared or 'none'}); convert the file first")
    if "\0" in text:
        raise InputError("binary: the file contains zero bytes")
    return text


def _decode_as(data: bytes, codec: codecs.CodecInfo) -> str | None:
    try:
        return codec.decode(data, "strict")[0]
    except ValueError:
        return None


def _find_label(data: bytes, etree: Any) -> str:
    """The encoding's label in the XML declaration or the first <meta> that has one, else ""."""
    if xml := _XML_ENCODING.match(data):
        return xml[1].decode("latin-1")
    page = parse_html(data.decode("latin-1"), etree)
    for meta in () if page is None else page.iter("meta"):
        if label := meta.get("charset"):
            return str(label)
        if meta.get("http-equiv", "").lower() == "content-type" and (found := _CHARSET.search(meta.get("content", ""))):
            return found[1]
    return ""
