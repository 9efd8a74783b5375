"""Plain text, Markdown and source code."""

from __future__ import annotations

from collections.abc import Iterator

from gircse_rag.documents.document import Document
from gircse_rag.documents.languages import LANGUAGE_OF_SUFFIX, grammar
from gircse_rag.documents.readers.source import Source
from gircse_rag.errors import InputError


def read_text(source: Source) -> Iterator[Document]:
    yield Document(source.id, _filled(source))


def read_markdown(source: Source) -> Iterator[Document]:
    yield Document(source.id, _filled(source), markdown=True)


def read_code(source: Source) -> Iterator[Document]:
    """Metadata: `language`. Without the grammar it is not read: it would be cut one way now and another way later.

    An empty file is no fault and no document: packages of Python are full of them.
    """
    language = LANGUAGE_OF_SUFFIX[source.suffix]
    grammar(language)
    text = source.text()
    if text.strip():
        yield Document(source.id, text, {"language": language}, language=language)


def _filled(source: Source) -> str:
    text = source.text()
    if not text.strip():
        raise InputError("empty")
    return text
