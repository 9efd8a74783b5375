"""Write an ingest's points, on its own thread, in an order that survives a crash at any moment.

A document's points have positions 0, 1, 2, ... below its *reach*, which the record of chunk 0 holds. So the next run
finds whatever a crash left by asking for ids, without a scan, and continues. No acknowledged vector is computed again.
To *stage* a vector is to write it behind both versions, where it waits until its document is complete.

                        step                                                       readers see, after a crash during it
    new document        chunk 0, then the others, as batches are embedded          the chunks written so far
    replaced document   1. stage vectors that could be lost (embedded while        the old version, and staged chunks
                           others are missing, or about to be overwritten):        of the new one
                           first raise the reach, then write them
                        2. once complete: chunk 0, then the others, in place       chunks of both versions
                        3. delete all points behind the last chunk,                the new version, and points that
                           then lower the reach                                    wait for deletion
    refused document    1. restore what step 2 overwrote, chunk 0 last             chunks of both versions
                        2. delete the new points, then reset the reach             the old version, and points that
                           (of a new document: delete chunk 0 last)                wait for deletion
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from qdrant_client import models

from gircse_rag.lexical import Bm25Encoder
from gircse_rag.qdrant.ingestion.job import Job
from gircse_rag.qdrant.ingestion.report import FailedDocument, IngestReport
from gircse_rag.qdrant.points import Points, Record, RefusedError, point_id, read_record
from gircse_rag.qdrant.schema import RECORD


class Writer:
    """Writes jobs to the collection. All writes are acknowledged before a method returns.

    Args:
        lexical: encoder of the collection's lexical vector, or None if it has none.
    """

    def __init__(self, points: Points, report: IngestReport, lexical: Bm25Encoder | None) -> None:
        self._lexical = lexical
        self._points = points
        self._report = report
        self._old: dict[Job, dict[int, models.PointStruct]] = {}  # old points of this batch, by position

    def write(self, complete: Sequence[Job], begun: dict[Job, list[int]], failed: Iterable[Job]) -> None:
        """Write the outcome of one batch.

        Args:
            complete: documents whose chunks all have vectors; they are written in place.
            begun: chunk numbers that got a vector in this batch, of documents that are not complete yet.
            failed: documents to roll back.
        """
        self._old = self._back_up(complete)
        self._finish(complete)
        for job, numbers in begun.items():
            try:
                self._write_incomplete(job, numbers)
            except RefusedError as error:
                self._fail(job, error)
        for job in failed:
            self._roll_back(job)

    def _back_up(self, jobs: Sequence[Job]) -> dict[Job, dict[int, models.PointStruct]]:
        """Copy the points that complete documents are about to overwrite, except those written by this run."""
        positions = {
            point_id(job.document, position): (job, position)
            for job in jobs
            if job.head is not None
            for position in sorted(job.records.keys() - set(job.written))
            if position < len(job.chunks)
        }
        old: dict[Job, dict[int, models.PointStruct]] = {}
        for key, point in self._points.read_whole(positions).items():
            job, position = positions[key]
            old.setdefault(job, {})[position] = point
        return old

    def _finish(self, jobs: Sequence[Job]) -> None:
        """Write complete documents and count them. If the store refuses a group, write its documents one by one."""
        try:
            self._write_complete(jobs)
        except RefusedError as error:
            if len(jobs) > 1:
                for job in jobs:
                    self._finish([job])
                return
            jobs[0].written += range(len(jobs[0].chunks))  # some may be written: points go in several requests
            self._fail(jobs[0], error)
            return
        for job in jobs:
            self._report.reused += job.reused
            self._report.added += job.head is None
            self._report.updated += job.head is not None

    def _write_complete(self, jobs: Sequence[Job]) -> None:
        """Write every chunk of complete documents in place, and delete what lies behind the last chunk."""
        for job in jobs:
            count = len(job.chunks)
            # Stage each reused vector whose position another text will take. The others are safe where they are.
            endangered = [
                number
                for number, position in job.vector_at.items()
                if position < count and job.hashes[position] != job.hashes[number]
            ]
            if endangered:
                self._stage(job, endangered)
        self._write_chunks((job, 0, 0) for job in jobs)
        self._write_chunks((job, number, number) for job in jobs for number in range(1, len(job.chunks)))
        for job in jobs:
            if job.stored_end > len(job.chunks):
                self._delete_tail(job)

    def _write_incomplete(self, job: Job, numbers: Sequence[int]) -> None:
        """Write chunks of a document that is not complete: in place where nothing is overwritten, else staged."""
        # After a crash while writing this same version, positions without a point are free, as in a new document.
        torn = job.head is not None and job.head.version == job.version
        free = [number for number in numbers if job.head is None or (torn and number not in job.records)]
        job.written += free
        self._write_chunks((job, number, number) for number in free if number == 0)
        self._write_chunks((job, number, number) for number in free if number)
        for number in free:
            job.vectors[number] = None  # bounds the memory of a long document
        if staged := sorted(set(numbers) - set(free)):
            self._stage(job, staged)

    def _stage(self, job: Job, numbers: Sequence[int]) -> None:
        """Write chunks to the staging area behind both versions, after raising the reach over it."""
        assert job.head is not None
        count = len(job.chunks)
        if job.stored_end < job.staging_start + count:
            job.stored_end = job.staging_start + count
            job.records[0] = replace(job.records[0], reach=job.stored_end)
            self._points.set_record(job.records[0])
        job.written += [job.staging_start + number for number in numbers]
        self._write_chunks((job, number, job.staging_start + number) for number in numbers)

    def _write_chunks(self, chunks: Iterable[tuple[Job, int, int]]) -> None:
        """Write each (job, chunk number, position), except points that the collection has already."""
        new = [
            (job, number, record)
            for job, number, position in chunks
            if job.records.get(position) != (record := job.record(number, position))
        ]
        written: list[Record] = []

        def make_points() -> Iterator[models.PointStruct]:
            for job, number, record in new:
                point, complete_record = job.point(number, record, self._lexical)
                written.append(complete_record)
                yield point

        self._points.write(make_points())
        for (job, number, _), record in zip(new, written, strict=True):
            job.records[record.number] = record
            job.vector_at[number] = record.number

    def _delete_tail(self, job: Job) -> None:
        """Delete all points behind the last chunk, then lower the reach. A crash in between is harmless."""
        count = len(job.chunks)
        deleted = self._points.delete(point_id(job.document, position) for position in range(count, job.stored_end))
        self._report.deleted += sum(record.number < record.chunks for record in deleted)  # staged points do not count
        job.stored_end = count
        job.records[0] = replace(job.records[0], reach=count)
        self._points.set_record(job.records[0])

    def _fail(self, job: Job, error: RefusedError) -> None:
        """Roll back a document that the store refused, and report it."""
        job.failed = True
        reason = str(error)
        try:
            self._roll_back(job)
        except RefusedError as restore_error:
            reason += (
                f"; its older version could not be restored either ({restore_error}). The collection "
                "holds chunks of both versions until one of them is ingested"
            )
        self._report.failed.append(FailedDocument(job.document, reason))

    def _roll_back(self, job: Job) -> None:
        """Undo everything this run wrote of a document.

        Old points are restored before new points are deleted, and the reach is reset last. After a crash in between,
        neither version is complete, the reach still covers all points, and the next run of either version repairs it.

        Raises:
            RefusedError: the store refuses an older point. The collection then looks as after such a crash.
        """
        if not job.written:
            return
        old, new = self._old.get(job, {}), set(job.written)
        job.written = []
        if old:
            self._restore(job, old)
        self._points.delete(point_id(job.document, position) for position in new - old.keys() if position)
        if 0 in new - old.keys():
            self._points.delete([point_id(job.document, 0)])
        elif job.head is not None:
            self._points.set_record(job.head)

    def _restore(self, job: Job, old: dict[int, models.PointStruct]) -> None:
        """Write back the old points that were overwritten, chunk 0 last. The reach still covers the new points."""
        stored = self._points.read(point_id(job.document, position) for position in old)
        records = {point.record.number: point.record for point in stored.values()}
        changed = {at: point for at, point in old.items() if records.get(at) != read_record(point.payload)}
        self._points.write(point for position, point in changed.items() if position)
        if 0 in changed and job.head is not None:
            head = replace(job.head, reach=job.record(0, 0).reach)
            changed[0].payload = {**(changed[0].payload or {}), RECORD: head.to_payload()}
            if records.get(0) != head:
                self._points.write([changed[0]])
