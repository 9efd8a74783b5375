"""The first stage of an ingest, on its own thread: read, check, look up and chunk documents."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from gircse_rag.documents.chunking import Chunker
from gircse_rag.documents.document import Document, SkippedFile
from gircse_rag.errors import GircseError
from gircse_rag.qdrant.checksums import fingerprint, hash_vector
from gircse_rag.qdrant.ingestion.checking import Checker
from gircse_rag.qdrant.ingestion.job import Job
from gircse_rag.qdrant.points import Points, Stored, point_id


class Intake:
    """Turns documents into jobs. Unchanged and failed documents get no job; the checker's report counts them.

    An unchanged document that another source brought gets this run's source, unless `write` is False.
    """

    def __init__(self, points: Points, chunker: Chunker, checker: Checker, *, write: bool = True) -> None:
        self._points = points
        self._chunker = chunker
        self._checker = checker
        self._write = write

    def groups(self, documents: Iterable[Document | SkippedFile]) -> Iterator[list[Job]]:
        """Yield the new and changed documents as chunked jobs, in small groups that may be empty.

        Raises:
            InputError: an item is not a Document (index: which).
        """
        return map(self._look_up, self._checker.groups(documents))

    def _look_up(self, group: list[tuple[Job, Document]]) -> list[Job]:
        """Drop the documents that are unchanged in the collection, and chunk the rest."""
        ids = [point_id(job.document, 0) for job, _ in group]
        heads = self._points.read(ids)
        same_version: list[Job] = []
        for (job, _), head_id in zip(group, ids, strict=True):
            if (head := heads.get(head_id)) is not None:
                job.head = head.record
                job.stored_end = max(head.record.reach, head.record.chunks)
                job.source = job.source or head.record.source
                if head.record.version == job.version and job.stored_end == head.record.chunks:
                    same_version.append(job)
        # Chunk 0 is written first, so after a crash the others may be missing: check all chunks of a document.
        tails = self._points.read(
            point_id(job.document, position) for job in same_version for position in range(1, job.stored_end)
        )
        unchanged = {job for job in same_version if _is_complete(job, tails)}
        for job in unchanged:
            if self._write and job.head is not None and job.head.source != job.source:
                self._points.set_record(replace(job.head, source=job.source))
            self._checker.report.unchanged += 1
        return [job for job, document in group if job not in unchanged and self._chunk(job, document)]

    def _chunk(self, job: Job, document: Document) -> bool:
        """Fill in the job's chunks, with the vectors the collection has for their texts.

        Returns False if the document has no chunks or cannot be chunked; it is then counted as failed.
        """
        try:
            job.chunks = self._chunker.cut(document)
        except GircseError as error:
            self._checker.fail(document, str(error))
            return False
        if not job.chunks:
            self._checker.fail(document, "it has no text to embed")
            return False
        ids = [point_id(job.document, position) for position in range(job.stored_end)]
        stored = {key: point for key, point in self._points.read(ids, vectors=True).items() if self._is_usable(point)}
        job.records = {point.record.number: point.record for point in stored.values()}
        by_text = {point.record.text: point for point in stored.values()}
        job.hashes = [fingerprint(chunk.text) for chunk in job.chunks]
        for number, text in enumerate(job.hashes):
            point = stored.get(point_id(job.document, number)) if job.stored_end else None
            if point is None or point.record.text != text:
                point = by_text.get(text)  # the chunk has moved
            job.vectors.append(None if point is None else point.vector)
            if point is not None:
                job.vector_at[number] = point.record.number
        job.staging_start = max(job.stored_end, len(job.chunks))
        job.reused = len(job.vector_at)
        job.missing = len(job.chunks) - job.reused
        return True

    def _is_usable(self, point: Stored) -> bool:
        """Whether a stored vector may be used again. A damaged one is embedded again."""
        intact = point.record.vector in (None, hash_vector(point.vector))
        return intact or not self._points.stores_vectors_exactly


def _is_complete(job: Job, stored: dict[str, Stored]) -> bool:
    """Whether `stored` has chunks 1, 2, ... of the job's document, all of the job's version."""
    points = (stored.get(point_id(job.document, position)) for position in range(1, job.stored_end))
    return all(point is not None and point.record.version == job.version for point in points)
