"""The last part of an ingest, on a thread of its own: vectors go into the collection, in an order that crashes respect.

    new document        chunk 0, then the others; each batch's as it comes
    replaced document   1. vectors that would be lost (embedded while others are missing, or about to be overwritten)
                           wait behind the old version's points: positions `reach` and up, which chunk 0 is told first
                        2. complete: chunk 0, then the others, in their places
                        3. what lies behind the last chunk is deleted, and chunk 0 told so
    refused document    1. what 2. has written over is put back, chunk 0 last
                        2. the new points are deleted, and chunk 0 told so

Chunk 0 alone says how far the document's points may reach (`Record.reach`), so whatever a crash leaves behind is found
by asking for ids, never by scanning, and a vector that was acknowledged is never computed again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from qdrant_client import models

from gircse_rag.qdrant.ingestion.job import Job
from gircse_rag.qdrant.ingestion.report import FailedDocument, IngestReport
from gircse_rag.qdrant.points import Points, RefusedError, point_id, read_record
from gircse_rag.qdrant.schema import RECORD


class Writer:
    """Writes jobs. After each method everything it wrote is acknowledged."""

    def __init__(self, points: Points, report: IngestReport) -> None:
        self._points = points
        self._report = report
        self._old: dict[Job, dict[int, models.PointStruct]] = {}  # by position, of the documents in this batch

    def write(self, complete: Sequence[Job], begun: dict[Job, list[int]], failed: Iterable[Job]) -> None:
        """A batch's outcome.

        Args:
            complete: every chunk has its vector: they take their places.
            begun: chunks that got a vector, of documents that wait for more.
            failed: what was written of them is taken back.
        """
        self._old = self._copies(complete)
        self._finish(complete)
        for job, numbers in begun.items():
            try:
                self._keep(job, numbers)
            except RefusedError as error:
                self._fail(job, error)
        for job in failed:
            self._take_back(job)

    def _copies(self, jobs: Sequence[Job]) -> dict[Job, dict[int, models.PointStruct]]:
        """What complete documents are about to write over, as this run found it."""
        places = {
            point_id(job.document, place): (job, place)
            for job in jobs
            if job.head is not None
            for place in sorted(job.records.keys() - set(job.written))
            if place < len(job.chunks)
        }
        old: dict[Job, dict[int, models.PointStruct]] = {}
        for key, point in self._points.copies(places).items():
            job, place = places[key]
            old.setdefault(job, {})[place] = point
        return old

    def _finish(self, jobs: Sequence[Job]) -> None:
        try:
            self._settle(jobs)
        except RefusedError as error:
            if len(jobs) > 1:
                for job in jobs:
                    self._finish([job])
                return
            jobs[0].written += range(len(jobs[0].chunks))  # any may be there: points go in several requests
            self._fail(jobs[0], error)
            return
        for job in jobs:
            self._report.reused += job.kept
            if job.head is None:
                self._report.added += 1
            else:
                self._report.updated += 1

    def _settle(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            count = len(job.chunks)
            # A vector may stay where it is until its own chunk has it, unless another text comes to stand there.
            moved = [
                number
                for number, place in job.vector_at.items()
                if place < count and job.hashes[place] != job.hashes[number]
            ]
            if moved:
                self._wait_behind(job, moved)
        self._put((job, 0, 0) for job in jobs)
        self._put((job, number, number) for job in jobs for number in range(1, len(job.chunks)))
        for job in jobs:
            if job.stored_end > len(job.chunks):
                self._shorten(job)

    def _keep(self, job: Job, numbers: Sequence[int]) -> None:
        """Chunks of a document that is not complete."""
        torn = job.head is not None and job.head.version == job.version  # a crash cut this very version short
        free = [number for number in numbers if job.head is None or (torn and number not in job.records)]
        job.written += free
        self._put((job, number, number) for number in free if number == 0)
        self._put((job, number, number) for number in free if number)
        for number in free:
            job.vectors[number] = None  # a long document's need not all be in memory
        if behind := sorted(set(numbers) - set(free)):
            self._wait_behind(job, behind)

    def _wait_behind(self, job: Job, numbers: Sequence[int]) -> None:
        assert job.head is not None
        count = len(job.chunks)
        if job.stored_end < job.staging_start + count:
            job.stored_end = job.staging_start + count
            job.records[0] = replace(job.records[0], reach=job.stored_end)
            self._points.mark(job.records[0])
        job.written += [job.staging_start + number for number in numbers]
        self._put((job, number, job.staging_start + number) for number in numbers)

    def _put(self, wanted: Iterable[tuple[Job, int, int]]) -> None:
        """(job, chunk, position): write those that are not there already."""
        chosen = [
            (job, number, record)
            for job, number, place in wanted
            if job.records.get(place) != (record := job.record(number, place))
        ]
        self._points.write(job.point(number, record) for job, number, record in chosen)
        for job, number, record in chosen:
            job.records[record.number] = record
            job.vector_at[number] = record.number

    def _shorten(self, job: Job) -> None:
        """Delete what lies behind the last chunk; only then may the head forget that it is there."""
        count = len(job.chunks)
        gone = self._points.delete(point_id(job.document, place) for place in range(count, job.stored_end))
        self._report.deleted += sum(record.number < record.chunks for record in gone)
        job.stored_end = count
        self._points.mark(job.record(0, 0))

    def _fail(self, job: Job, error: RefusedError) -> None:
        job.failed = True
        reason = str(error)
        try:
            self._take_back(job)
        except RefusedError as again:
            reason += (
                f"; nor could its older version be put back ({again}): the collection holds chunks of both until one "
                "of them is ingested"
            )
        self._report.failed.append(FailedDocument(job.document, reason))

    def _take_back(self, job: Job) -> None:
        """As if nothing of it had been written.

        Until its end chunk 0 reaches over all there is, and no version is whole under it: after a crash in between, the
        next run of either version goes on from there. All texts are back before a copy of one is deleted.

        Raises:
            RefusedError: the store does not take an older point back. What is there is as after such a crash.
        """
        if not job.written:
            return
        old, new = self._old.get(job, {}), set(job.written)
        job.written = []
        if old:
            self._put_back(job, old)
        self._points.delete(point_id(job.document, place) for place in new - old.keys() if place)
        if 0 in new - old.keys():
            self._points.delete([point_id(job.document, 0)])
        elif job.head is not None:
            self._points.mark(job.head)

    def _put_back(self, job: Job, old: dict[int, models.PointStruct]) -> None:
        """Those that are not there any more; chunk 0 last, and it still reaches over the new points."""
        stored = self._points.read(point_id(job.document, place) for place in old)
        there = {point.record.number: point.record for point in stored.values()}
        gone = {place: point for place, point in old.items() if there.get(place) != read_record(point.payload)}
        self._points.write(point for place, point in gone.items() if place)
        if 0 in gone and job.head is not None:
            head = replace(job.head, reach=job.record(0, 0).reach)
            gone[0].payload = {**(gone[0].payload or {}), RECORD: dict(vars(head))}
            if there.get(0) != head:
                self._points.write([gone[0]])
