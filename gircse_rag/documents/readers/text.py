"""Reads plain text, Markdown and source code."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gircse_rag.documents.document import Document
from gircse_rag.documents.front_matter import front_matter_end, read_front_matter
from gircse_rag.documents.languages import LANGUAGE_OF_SUFFIX, grammar
from gircse_rag.documents.readers.rows import json_fields
from gircse_rag.documents.readers.source import Source
from gircse_rag.errors import InputError


def read_text(source: Source) -> Iterator[Document]:
    """Read a plain-text file as one document."""
    yield Document(source.id, _read_nonempty(source))


def read_markdown(source: Source) -> Iterator[Document]:
    """Read a Markdown file as one document. Metadata: the fields of its front matter."""
    yield markdown_document(source.id, _read_nonempty(source), {})


def markdown_document(name: str, text: str, metadata: dict[str, Any]) -> Document:
    """A Markdown document with the fields of its front matter beside `metadata`.

    Fields that cannot be metadata (binary data, too deep) become one text, `front_matter`.
    """
    fields = read_front_matter(text)
    try:
        fields = json_fields(fields)
    except InputError:
        fields = {"front_matter": text[: front_matter_end(text)]}
    return Document(name, text, {**metadata, **fields}, markdown=True)


def read_code(source: Source) -> Iterator[Document]:
    """Read a source file as one document, with `language` in its metadata.

    Needs the grammar already here: read as plain text now, the file would be cut differently once it is installed.
    An empty file gives no document and is not reported, because an empty `__init__.py` is common.
    """
    language = LANGUAGE_OF_SUFFIX[source.suffix]
    grammar(language)
    text = source.text()
    if text.strip():
        yield Document(source.id, text, {"language": language}, language=language)


def _read_nonempty(source: Source) -> str:
    text = source.text()
    if not text.strip():
        raise InputError("empty")
    return text
