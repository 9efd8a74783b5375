"""The last part of an ingest, on a thread of its own: vectors go into the collection, in an order that crashes respect.

    new document        chunk 0, then the others; each batch's as it comes
    replaced document   1. vectors that would be lost (embedded while others are missing, or about to be overwritten)
                           wait behind the old version's points: positions `reach` and up, which chunk 0 is told first
                        2. complete: chunk 0, then the others, in their places
                        3. what lies behind the last chunk is deleted, and chunk 0 told so

Chunk 0 alone says how far the document's points may reach (`Record.reach`), so whatever a crash leaves behind is found
by asking for ids, never by scanning, and a vector that was acknowledged is never computed again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from gircse_rag.qdrant.job import Job
from gircse_rag.qdrant.points import Points, RefusedError, point_id
from gircse_rag.qdrant.report import FailedDocument, IngestReport


class Writer:
    """Writes jobs. After each method everything it wrote is acknowledged."""

    def __init__(self, points: Points, report: IngestReport) -> None:
        self._points = points
        self._report = report

    def write(self, complete: Sequence[Job], begun: dict[Job, list[int]], failed: Iterable[Job]) -> None:
        """A batch's outcome.

        Args:
            complete: every chunk has its vector: they take their places.
            begun: chunks that got a vector, of documents that wait for more.
            failed: what was written of them is taken back.
        """
        self._finish(complete)
        for job, numbers in begun.items():
            try:
                self._keep(job, numbers)
            except RefusedError as error:
                self._fail(job, error)
        for job in failed:
            self._take_back(job)

    def _finish(self, jobs: Sequence[Job]) -> None:
        try:
            self._settle(jobs)
        except RefusedError as error:
            if len(jobs) > 1:
                for job in jobs:
                    self._finish([job])
                return
            if jobs[0].head is None:
                jobs[0].put = list(range(len(jobs[0].chunks)))
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
                for number, place in job.lies.items()
                if place < count and job.hashes[place] != job.hashes[number]
            ]
            if moved:
                self._wait_behind(job, moved)
        self._put((job, 0, 0) for job in jobs)
        self._put((job, number, number) for job in jobs for number in range(1, len(job.chunks)))
        for job in jobs:
            if job.reach > len(job.chunks):
                self._shorten(job)

    def _keep(self, job: Job, numbers: Sequence[int]) -> None:
        """Chunks of a document that is not complete."""
        torn = job.head is not None and job.head.version == job.version  # a crash cut this very version short
        free = [number for number in numbers if job.head is None or (torn and number not in job.there)]
        job.put += free
        self._put((job, number, number) for number in free if number == 0)
        self._put((job, number, number) for number in free if number)
        for number in free:
            job.vectors[number] = None  # a long document's need not all be in memory
        if behind := sorted(set(numbers) - set(free)):
            self._wait_behind(job, behind)

    def _wait_behind(self, job: Job, numbers: Sequence[int]) -> None:
        assert job.head is not None
        count = len(job.chunks)
        if job.reach < job.behind + count:
            job.reach = job.behind + count
            job.there[0] = replace(job.there[0], reach=job.reach)
            self._points.mark(job.there[0])
        job.put += [job.behind + number for number in numbers]
        self._put((job, number, job.behind + number) for number in numbers)

    def _put(self, wanted: Iterable[tuple[Job, int, int]]) -> None:
        """(job, chunk, position): write those that are not there already."""
        chosen = [
            (job, number, record)
            for job, number, place in wanted
            if job.there.get(place) != (record := job.record(number, place))
        ]
        self._points.write(job.point(number, record) for job, number, record in chosen)
        for job, number, record in chosen:
            job.there[record.number] = record
            job.lies[number] = record.number

    def _shorten(self, job: Job) -> None:
        """Delete what lies behind the last chunk; only then may the head forget that it is there."""
        count = len(job.chunks)
        gone = self._points.delete(point_id(job.document, place) for place in range(count, job.reach))
        self._report.deleted += sum(record.number < record.chunks for record in gone)
        job.reach = count
        self._points.mark(job.record(0, 0))

    def _fail(self, job: Job, error: RefusedError) -> None:
        job.failed = True
        self._report.failed.append(FailedDocument(job.document, str(error)))
        self._take_back(job)

    def _take_back(self, job: Job) -> None:
        """As if nothing of it had been written; chunk 0 goes last, for it says where the others are.

        Where it has the new version's text already it stays: its record reaches over all there is, and neither version
        is whole under it, so the next run of either goes on from there.
        """
        places = sorted(set(job.put), reverse=True)
        job.put = []
        self._points.delete(point_id(job.document, place) for place in places if place)
        if job.head is None:
            self._points.delete(point_id(job.document, place) for place in places if not place)
        elif places and job.there[0].version == job.head.version:
            self._points.mark(job.head)  # over the new version's text it would call the old one whole
