"""What an ingest tells: how far it is, and what it did."""

from __future__ import annotations

from dataclasses import dataclass, field

from gircse_rag.qdrant.documents import SkippedFile


@dataclass(frozen=True)
class FailedDocument:
    """A document of which nothing was written; what the collection held of it before is still there.

    Attributes:
        id: the document's.
        reason: for people.
    """

    id: str
    reason: str

    def __str__(self) -> str:
        return f"{self.id}: {self.reason}"


@dataclass
class IngestReport:
    """What an ingest did. Every document counts once: as added, updated, unchanged or failed.

    Attributes:
        added: documents the collection did not have.
        updated: documents of which it had another version, or only a part.
        unchanged: documents it had as they are; also a document that was given twice alike.
        deleted: chunks, not documents, that were removed because their document got shorter.
        failed: documents of which nothing was written, and why.
        skipped: files, folders and lines that gave no document, and why.
        embedded: chunks that were embedded.
        reused: chunks of updated documents that kept their vectors, their text being the same.
        prompt_tokens: of the embedded chunks.
    """

    added: int = 0
    updated: int = 0
    unchanged: int = 0
    deleted: int = 0
    failed: list[FailedDocument] = field(default_factory=list)
    skipped: list[SkippedFile] = field(default_factory=list)
    embedded: int = 0
    reused: int = 0
    prompt_tokens: int = 0


@dataclass(frozen=True)
class Progress:
    """How far an ingest is.

    Attributes:
        documents: done with, written, unchanged or failed.
        chunks: embedded.
        prompt_tokens: of those chunks.
    """

    documents: int
    chunks: int
    prompt_tokens: int
