"""What goes into a collection: `Document`, and `SkippedFile` for what gave none. `readers` makes both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Document:
    """A text and what is known about it.

    Attributes:
        id: names the document in its collection. Ingesting the same id again replaces the document, so an id has to be
            the same in every run; `read_documents` says what it uses.
        text: any length; it is cut into chunks that fit the model.
        metadata: JSON values under string keys; comes back with every hit.
        markdown: cut at headings and blocks, and keep the path of headings.
        language: cut as source code of this language, one of `languages.LANGUAGES`; None: it is no code.
        paged: form feeds divide its pages; each chunk keeps the number of the page it begins on.
    """

    id: str
    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    markdown: bool = False
    language: str | None = None
    paged: bool = False


@dataclass(frozen=True)
class SkippedFile:
    """A file, folder, line or row that gave no document; or a framework's document that is none of ours.

    Attributes:
        path: as it was found; where to look.
        reason: for people.
        line: counted from 1, of a .jsonl, .csv or .tsv; None: the file as a whole, or the reason names the row.
    """

    path: str
    reason: str
    line: int | None = None

    def __str__(self) -> str:
        place = self.path if self.line is None else f"{self.path}, line {self.line}"
        return f"{place}: {self.reason}"
