"""What an ingest tells: how far it is, and what it did."""

from __future__ import annotations

from dataclasses import dataclass, field

from gircse_rag.documents.document import SkippedFile

NAMED_DUPLICATES = 1000


@dataclass(frozen=True)
class FailedDocument:
    """A document that was not stored; what the collection held of it before is there as it was.

    One exception, which `reason` then names: a store that refused the new version and refuses the old one, too, when it
    is put back. Then chunks of both are there, and ingesting either version puts it right.

    Attributes:
        id: the document's.
        reason: for people.
    """

    id: str
    reason: str

    def __str__(self) -> str:
        return f"{self.id}: {self.reason}"


@dataclass(frozen=True)
class DuplicateDocument:
    """A document with the text of an earlier one of the same run. Both were ingested.

    Attributes:
        id: the document's.
        of: the id of the first one with this text.
    """

    id: str
    of: str

    def __str__(self) -> str:
        return f"{self.id}: the same text as {self.of}"


@dataclass
class IngestReport:
    """What an ingest did. Every document counts once: as added, updated, unchanged or failed.

    Attributes:
        added: documents the collection did not have.
        updated: documents of which it had another version, or only a part.
        unchanged: documents it had as they are; also a document that was given twice alike.
        deleted: chunks, not documents, that were removed: their document got shorter, or `sync` removed it.
        failed: documents that were not stored, and why.
        skipped: files, folders and lines that gave no document, and why.
        embedded: chunks that were embedded.
        reused: chunks of updated documents that kept their vectors, their text being the same.
        prompt_tokens: of the embedded chunks.
        duplicated: documents with the text of an earlier one of this run.
        duplicates: the first thousand of them.
        gone: with `sync`, the ids of documents that the source brought once and no longer has.
        removed: how many of those were deleted.
        kept_because: why `sync` deleted nothing, or None.
        retries: requests to the store that had to be repeated.
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
    duplicated: int = 0
    duplicates: list[DuplicateDocument] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    removed: int = 0
    kept_because: str | None = None
    retries: int = 0

    @property
    def documents(self) -> int:
        """Documents that are done with: added, updated, unchanged or failed."""
        return self.added + self.updated + self.unchanged + len(self.failed)

    def add(self, part: IngestReport) -> None:
        """Add the counts and the lists of a part of the same run."""
        for name, value in vars(part).items():
            if isinstance(value, int | list):
                setattr(self, name, getattr(self, name) + value)
        del self.duplicates[NAMED_DUPLICATES:]

    def duplicate(self, found: DuplicateDocument) -> None:
        """Count a duplicate, and name it if there are not too many to keep in memory."""
        self.duplicated += 1
        if len(self.duplicates) < NAMED_DUPLICATES:
            self.duplicates.append(found)


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
