"""The result of an ingest (`IngestReport`), and its progress (`Progress`)."""

from __future__ import annotations

from dataclasses import dataclass, field

from gircse_rag.documents.document import SkippedFile
from gircse_rag.errors import summarize

_MAX_LISTED_DUPLICATES = 1000  # bounds the memory


@dataclass(frozen=True)
class FailedDocument:
    """A document that was not stored. The collection keeps its older version, if it had one.

    One exception, stated in `reason`: if the store also refuses to take the older version back, the collection holds
    chunks of both versions. Ingesting either version repairs it.

    Attributes:
        id: document id.
        reason: why it failed, for people to read.
    """

    id: str
    reason: str

    def __str__(self) -> str:
        return f"{self.id}: {self.reason}"


@dataclass(frozen=True)
class DuplicateDocument:
    """A document with the same text as an earlier one of the run. Both are ingested.

    Attributes:
        id: document id.
        of: id of the first document with this text.
    """

    id: str
    of: str

    def __str__(self) -> str:
        return f"{self.id}: the same text as {self.of}"


@dataclass(repr=False)
class IngestReport:
    """The result of an ingest. Every document counts once: as added, updated, unchanged or failed.

    A dry run adds and updates nothing; it lists documents in `to_add` and `to_update` instead.

    Attributes:
        added: number of documents that are new in the collection.
        updated: number of documents that replaced another version, or completed a partly written one.
        unchanged: number of documents that the collection already had, or that repeat an earlier one of the run.
        deleted: number of chunks (not documents) deleted because their document got shorter or `sync` removed it.
        failed: documents that were not stored, with reasons.
        skipped: files, folders and lines that gave no document, with reasons.
        embedded: number of chunks embedded.
        reused: number of chunks of updated documents that kept their vectors because their text is unchanged.
        prompt_tokens: number of tokens of the embedded chunks.
        duplicated: number of documents with the same text as an earlier one of the run.
        duplicates: the first thousand of these.
        gone: with `sync`, ids of documents that the source had in an earlier run but not in this one.
        removed: number of `gone` documents that were deleted.
        kept_because: why `sync` deleted nothing, or None.
        retries: number of requests to the store that were retried.
        to_add: of a dry run, ids of the documents that a run would add.
        to_update: of a dry run, ids of the documents that a run would replace.
        to_embed: of a dry run, number of chunks that a run would embed.
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
    to_add: list[str] = field(default_factory=list)
    to_update: list[str] = field(default_factory=list)
    to_embed: int = 0

    @property
    def documents(self) -> int:
        """Number of documents processed: added, updated, unchanged or failed, or listed by a dry run."""
        listed = len(self.to_add) + len(self.to_update)
        return self.added + self.updated + self.unchanged + len(self.failed) + listed

    __repr__ = summarize

    def add(self, part: IngestReport) -> None:
        """Add the counts and lists of another part of the same run."""
        for name, value in vars(part).items():
            if isinstance(value, int | list):
                setattr(self, name, getattr(self, name) + value)
        del self.duplicates[_MAX_LISTED_DUPLICATES:]

    def duplicate(self, duplicate: DuplicateDocument) -> None:
        """Count a duplicate, and list it if it is among the first thousand."""
        self.duplicated += 1
        if len(self.duplicates) < _MAX_LISTED_DUPLICATES:
            self.duplicates.append(duplicate)


@dataclass(frozen=True)
class Progress:
    """Progress of an ingest.

    Attributes:
        documents: number of documents added, updated, unchanged or failed so far.
        chunks: number of chunks embedded so far, in whole batches.
        prompt_tokens: number of tokens of these chunks.
        finished: `documents`, and those of the current batch whose chunks are all embedded but not written yet.
    """

    documents: int
    chunks: int
    prompt_tokens: int
    finished: int
