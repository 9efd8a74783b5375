"""The first part of an ingest, on a thread of its own: documents are read, checked, looked up and cut."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from gircse_rag.documents.chunking import Chunker
from gircse_rag.documents.document import Document, SkippedFile
from gircse_rag.errors import GircseError
from gircse_rag.qdrant.ingestion.checking import Checker
from gircse_rag.qdrant.ingestion.job import Job, fingerprint
from gircse_rag.qdrant.points import Points, Stored, point_id


class Intake:
    """Turns documents into jobs, and counts in the checker's report those that need none."""

    def __init__(self, points: Points, chunker: Chunker, checker: Checker) -> None:
        self._points = points
        self._chunker = chunker
        self._checker = checker

    def groups(self, documents: Iterable[Document | SkippedFile]) -> Iterator[list[Job]]:
        """The documents that are new or changed, cut into chunks, a few at a time; possibly none of them.

        Raises:
            InputError: an item is no Document (index: which).
        """
        return map(self._look_up, self._checker.groups(documents))

    def _look_up(self, group: list[tuple[Job, Document]]) -> list[Job]:
        """Sort out what the collection has already, and cut the rest."""
        ids = [point_id(job.document, 0) for job, _ in group]
        heads = self._points.read(ids)
        same: list[Job] = []
        for (job, _), head_id in zip(group, ids, strict=True):
            if (head := heads.get(head_id)) is not None:
                job.head = head.record
                job.stored_end = max(head.record.reach, head.record.chunks)
                job.source = job.source or head.record.source
                if head.record.version == job.version and job.stored_end == head.record.chunks:
                    same.append(job)
        # A head may stand alone after a crash: only a document whose every chunk is there is unchanged.
        there = self._points.read(point_id(job.document, number) for job in same for number in range(1, job.stored_end))
        unchanged = {job for job in same if _whole(job, there)}
        for job in unchanged:
            if job.head is not None and job.head.source != job.source:
                self._points.mark(replace(job.head, source=job.source))
            self._checker.report.unchanged += 1
        return [job for job, document in group if job not in unchanged and self._cut(job, document)]

    def _cut(self, job: Job, document: Document) -> bool:
        """Fill in the chunks and the vectors that the collection has for them; False if there are no chunks."""
        try:
            job.chunks = self._chunker.cut(document)
        except GircseError as error:
            self._checker.fail(document, str(error))
            return False
        if not job.chunks:
            self._checker.fail(document, "there is no text to embed in it")
            return False
        stored = self._points.read((point_id(job.document, number) for number in range(job.stored_end)), vectors=True)
        job.records = {point.record.number: point.record for point in stored.values()}
        by_text = {point.record.text: point for point in stored.values()}
        job.hashes = [fingerprint(chunk.text) for chunk in job.chunks]
        for number, text in enumerate(job.hashes):
            found = stored.get(point_id(job.document, number)) if job.stored_end else None
            if found is None or found.record.text != text:
                found = by_text.get(text)
            job.vectors.append(None if found is None else found.vector)
            if found is not None:
                job.vector_at[number] = found.record.number
        job.staging_start = max(job.stored_end, len(job.chunks))
        job.kept = len(job.vector_at)
        job.missing = len(job.chunks) - job.kept
        return True


def _whole(job: Job, there: dict[str, Stored]) -> bool:
    points = (there.get(point_id(job.document, number)) for number in range(1, job.stored_end))
    return all(point is not None and point.record.version == job.version for point in points)
