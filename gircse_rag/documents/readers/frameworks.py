"""Converts LangChain and LlamaIndex documents, recognised by their attributes; neither framework is imported."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from gircse_rag.documents.document import Document, SkippedFile
from gircse_rag.documents.readers.rows import json_fields
from gircse_rag.errors import InputError


@runtime_checkable
class LangChainDocument(Protocol):
    """`langchain_core.documents.Document`."""

    id: str | None
    page_content: str
    metadata: dict[str, Any]


@runtime_checkable
class LlamaIndexNode(Protocol):
    """`llama_index.core.schema.Document` and `TextNode`."""

    metadata: dict[str, Any]

    @property
    def node_id(self) -> str: ...

    def get_content(self) -> str: ...


FrameworkDocument = LangChainDocument | LlamaIndexNode


def to_document(item: FrameworkDocument) -> Document | SkippedFile:
    """Convert a framework's document, keeping its id, text and metadata.

    A LangChain document without an id gets "text:" and a hash of its text and metadata. That id does not depend on the
    order of documents, but a changed document gets a new one. Set ids if changed documents should replace old ones.
    """
    if isinstance(item, LangChainDocument):
        name, text, metadata = item.id, item.page_content, item.metadata
    else:
        name, text, metadata = item.node_id, item.get_content(), item.metadata
    try:
        if not isinstance(metadata, Mapping):
            raise InputError(f"metadata is a {type(metadata).__name__}, not a mapping")
        fields = json_fields(metadata)
    except InputError as error:
        return SkippedFile(name or f"a {type(item).__name__} that begins {text[:40]!r}", str(error))
    return Document(name or _content_id(text, fields), text, fields)


def _content_id(text: str, metadata: dict[str, Any]) -> str:
    content = json.dumps([text, metadata], sort_keys=True)
    return f"text:{hashlib.sha256(content.encode()).hexdigest()[:32]}"
