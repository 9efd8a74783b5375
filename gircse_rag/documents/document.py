"""What readers produce: a `Document`, or a `SkippedFile` for input that could not be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Document:
    """A text with an id and metadata.

    Attributes:
        id: unique within a collection and the same in every run: ingesting an id again replaces the document.
            See `read_documents` for the ids of files and rows.
        text: of any length; it is cut into chunks that fit the model.
        metadata: JSON values under string keys; returned with every hit.
        markdown: whether to cut at Markdown headings and blocks, keep each chunk's heading path, and leave out front
            matter.
        language: cut as source code in this language, one of `languages.LANGUAGES`; None if the text is not code.
        paged: whether form feeds separate pages; each chunk is then of one page, and keeps its number.
    """

    id: str
    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    markdown: bool = False
    language: str | None = None
    paged: bool = False


@dataclass(frozen=True)
class SkippedFile:
    """A file, folder, line or row that could not be read, or a framework's document that could not be converted.

    Attributes:
        path: of the file as it was found; for a framework's document, its id or the start of its text.
        reason: human-readable.
        line: from 1, in a .jsonl, .csv or .tsv. None if the whole file is meant, or if `reason` names the row.
    """

    path: str
    reason: str
    line: int | None = None

    def __str__(self) -> str:
        place = self.path if self.line is None else f"{self.path}, line {self.line}"
        return f"{place}: {self.reason}"
