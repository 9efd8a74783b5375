"""Which documents of a run can be ingested: `Checker`. It looks at them alone, never at the collection."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from gircse_rag.documents.chunking import Chunker
from gircse_rag.documents.document import Document, SkippedFile
from gircse_rag.documents.metadata import json_text
from gircse_rag.errors import InputError
from gircse_rag.qdrant.ingestion.job import Job, fingerprint
from gircse_rag.qdrant.ingestion.report import DuplicateDocument, FailedDocument, IngestReport
from gircse_rag.qdrant.ingestion.seen import Seen
from gircse_rag.tokens import check_text

# Documents are checked and looked up together, to save round trips; few enough, and few enough characters, to bound
# the memory.
_GROUP_DOCUMENTS = 64
_GROUP_CHARACTERS = 4_000_000
_USED_BEFORE = (
    "its id was used before in this run, for another text or other metadata, and the first one stands; "
    "give each document an id of its own (files: ingest the common parent of their folders)"
)


class Checker:
    """Checks each document by itself and against all before it, and counts in the report those that go no further.

    Attributes:
        report: where it counts; another one may be put in its place between two groups.
    """

    def __init__(self, chunker: Chunker, seen: Seen, report: IngestReport, source: str | None) -> None:
        self.report = report
        self._chunker = chunker
        self._seen = seen
        self._source = source

    def groups(self, documents: Iterable[Document | SkippedFile]) -> Iterator[list[tuple[Job, Document]]]:
        """The documents that pass, a few at a time, possibly none; each with a job that is not looked up yet.

        Raises:
            InputError: an item is no Document (index: which).
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
                group.append((item, self._check(item)))
                characters += len(item.text)
            except InputError as error:
                group.append((item, str(error)))
            if len(group) == _GROUP_DOCUMENTS or characters >= _GROUP_CHARACTERS:
                yield self._passed(group)
                group, characters = [], 0
        if group:
            yield self._passed(group)

    def fail(self, document: Document, reason: str) -> None:
        """Count a document as failed."""
        if isinstance(document.id, str):
            self._seen.failed(document.id)
        self.report.failed.append(FailedDocument(str(document.id), reason))

    def _check(self, document: Document) -> Job:
        """A job for the document, which is good by itself."""
        if not isinstance(document.id, str) or not document.id.strip():
            raise InputError(f"its id is {document.id!r}, not a string that names it")
        try:
            document.id.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"its id {document.id!r} holds a lone surrogate: it was decoded wrongly") from error
        check_text(document.text)
        metadata = json_text(document.metadata)
        if "_chunk" in document.metadata:
            raise InputError("its metadata has the key '_chunk', where gircse keeps the chunk's place; rename it")
        parts = [document.id, document.text, metadata, bool(document.markdown), self._chunker.recipe_of(document)]
        version = fingerprint(json.dumps(parts, ensure_ascii=False))
        return Job(document.id, json.loads(metadata), version, self._source)

    def _passed(self, group: list[tuple[Document, Job | str]]) -> list[tuple[Job, Document]]:
        """Those that are good, each by itself and beside all before it."""
        jobs = [job for _, job in group if isinstance(job, Job)]
        before = iter(self._seen.before((job.document, job.version) for job in jobs))
        passed = []
        for document, job in group:
            if isinstance(job, str):
                self.fail(document, job)
                continue
            how = next(before)
            if how == "never":
                passed.append((job, document))
            elif how == "alike":
                self.report.unchanged += 1
            else:
                self.fail(document, _USED_BEFORE)
        twins = self._seen.twins((document.id, document.text) for _, document in passed)
        for (job, _), twin in zip(passed, twins, strict=True):
            if twin is not None:
                self.report.duplicate(DuplicateDocument(job.document, twin))
        return passed
