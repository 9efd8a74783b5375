"""Find the documents of a run that can be ingested: `Checker`. Checks do not involve the collection."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from gircse_rag.documents.chunking import Chunker
from gircse_rag.documents.document import Document, SkippedFile
from gircse_rag.documents.metadata import json_text
from gircse_rag.errors import InputError
from gircse_rag.qdrant.checksums import fingerprint
from gircse_rag.qdrant.ingestion.job import Job
from gircse_rag.qdrant.ingestion.report import DuplicateDocument, FailedDocument, IngestReport
from gircse_rag.qdrant.ingestion.seen import Seen
from gircse_rag.tokens import check_text

# Documents are checked and looked up in groups, to save round trips. Both limits bound the memory of a group.
_GROUP_DOCUMENTS = 64
_GROUP_CHARACTERS = 4_000_000
_ID_CLASH = (
    "its id was used before in this run, for another text or other metadata; the first document is kept. Give each "
    "document its own id (for files: ingest the common parent of their folders)"
)


class Checker:
    """Checks each document on its own and against all earlier ones, and counts rejected documents in a report.

    Attributes:
        report: the report to count in; it may be replaced between two groups.
    """

    def __init__(self, chunker: Chunker, seen: Seen, report: IngestReport, source: str | None) -> None:
        self.report = report
        self._chunker = chunker
        self._seen = seen
        self._source = source

    def groups(self, documents: Iterable[Document | SkippedFile]) -> Iterator[list[tuple[Job, Document]]]:
        """Yield the documents that pass, in small groups that may be empty, each with a job not yet looked up.

        Raises:
            InputError: an item is not a Document (index: which).
        """
        group: list[tuple[Document, Job | str]] = []
        characters = 0
        for index, item in enumerate(documents):
            if isinstance(item, SkippedFile):
                self.report.skipped.append(item)
                continue
            if not isinstance(item, Document):
                raise InputError(f"item {index} is not a Document but {type(item).__name__}", index=index)
            try:
                group.append((item, self._make_job(item)))
                characters += len(item.text)
            except InputError as error:
                group.append((item, str(error)))
            if len(group) == _GROUP_DOCUMENTS or characters >= _GROUP_CHARACTERS:
                yield self._filter(group)
                group, characters = [], 0
        if group:
            yield self._filter(group)

    def fail(self, document: Document, reason: str) -> None:
        """Count a document as failed."""
        if isinstance(document.id, str):
            self._seen.add_failed(document.id)
        self.report.failed.append(FailedDocument(str(document.id), reason))

    def _make_job(self, document: Document) -> Job:
        """Check a document on its own and make its job.

        Raises:
            InputError: the document cannot be ingested.
        """
        if not isinstance(document.id, str) or not document.id.strip():
            raise InputError(f"its id is {document.id!r}; give it a string that is not blank")
        try:
            document.id.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"its id {document.id!r} has a lone surrogate: it was decoded wrongly") from error
        check_text(document.text)
        metadata = json_text(document.metadata)
        if "_chunk" in document.metadata:
            raise InputError("its metadata has the key '_chunk', which gircse reserves; rename the key")
        parts = [document.id, document.text, metadata, bool(document.markdown), self._chunker.recipe_of(document)]
        version = fingerprint(json.dumps(parts, ensure_ascii=False))
        return Job(document.id, json.loads(metadata), version, self._source)

    def _filter(self, group: list[tuple[Document, Job | str]]) -> list[tuple[Job, Document]]:
        """Drop documents that failed, repeat an earlier one, or reuse its id. Note duplicate texts."""
        jobs = [job for _, job in group if isinstance(job, Job)]
        comparisons = iter(self._seen.compare_versions((job.document, job.version) for job in jobs))
        passed = []
        for document, job in group:
            if isinstance(job, str):
                self.fail(document, job)
                continue
            comparison = next(comparisons)
            if comparison == "new":
                passed.append((job, document))
            elif comparison == "same":
                self.report.unchanged += 1
            else:
                self.fail(document, _ID_CLASH)
        originals = self._seen.find_duplicates((document.id, document.text) for _, document in passed)
        for (job, _), original in zip(passed, originals, strict=True):
            if original is not None:
                self.report.duplicate(DuplicateDocument(job.document, original))
        return passed
