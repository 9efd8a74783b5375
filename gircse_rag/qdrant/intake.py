"""The first part of an ingest, on a thread of its own: documents are read, checked, looked up and cut."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from gircse_rag.errors import GircseError, InputError
from gircse_rag.qdrant.chunking import Chunker
from gircse_rag.qdrant.documents import Document, SkippedFile
from gircse_rag.qdrant.job import Job, fingerprint
from gircse_rag.qdrant.points import Points, Stored, point_id
from gircse_rag.qdrant.report import DuplicateDocument, FailedDocument, IngestReport
from gircse_rag.qdrant.seen import Seen
from gircse_rag.tokens import check_text

# Documents are looked up together, to save round trips; few enough, and few enough characters, to bound the memory.
_GROUP_DOCUMENTS = 64
_GROUP_CHARACTERS = 4_000_000
_MAX_DEPTH = 64


class Intake:
    """Turns documents into jobs, and counts in the report those that need none."""

    def __init__(self, points: Points, chunker: Chunker, seen: Seen, report: IngestReport, source: str | None) -> None:
        self._points = points
        self._chunker = chunker
        self._seen = seen
        self._report = report
        self._source = source

    def groups(self, documents: Iterable[Document | SkippedFile]) -> Iterator[list[Job]]:
        """The documents that are new or changed, cut into chunks, a few at a time; possibly none of them.

        Raises:
            InputError: an item is no Document (index: which).
        """
        group: list[tuple[Job, Document]] = []
        characters = 0
        for index, item in enumerate(documents):
            if isinstance(item, SkippedFile):
                self._report.skipped.append(item)
                continue
            if not isinstance(item, Document):
                raise InputError(f"item {index} is not a Document but {type(item).__name__}", index=index)
            try:
                job = self._check(item)
            except InputError as error:
                self._fail(item, str(error))
                continue
            if job is None:
                self._report.unchanged += 1
                continue
            group.append((job, item))
            characters += len(item.text)
            if len(group) == _GROUP_DOCUMENTS or characters >= _GROUP_CHARACTERS:
                yield self._look_up(group)
                group, characters = [], 0
        if group:
            yield self._look_up(group)

    def _check(self, document: Document) -> Job | None:
        """A job for the document, or None if the same one was given before in this run."""
        if not isinstance(document.id, str) or not document.id.strip():
            raise InputError(f"its id is {document.id!r}, not a string that names it")
        try:
            document.id.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"its id {document.id!r} holds a lone surrogate: it was decoded wrongly") from error
        check_text(document.text)
        metadata = _json_metadata(document)
        parts = [document.id, document.text, metadata, document.markdown, self._chunker.recipe_of(document)]
        version = fingerprint(json.dumps(parts, ensure_ascii=False))
        before = self._seen.before(document.id, version)
        if before == "different":
            raise InputError(
                "its id was used before in this run, for another text or other metadata, and the first one stands; "
                "give each document an id of its own (files: ingest the common parent of their folders)"
            )
        if before == "alike":
            return None
        if (twin := self._seen.twin(document.id, document.text)) is not None:
            self._report.duplicate(DuplicateDocument(document.id, twin))
        return Job(document.id, json.loads(metadata), version, self._source)

    def _look_up(self, group: list[tuple[Job, Document]]) -> list[Job]:
        """Sort out what the collection has already, and cut the rest."""
        heads = self._points.read(point_id(job.document, 0) for job, _ in group)
        same: list[Job] = []
        for job, _ in group:
            if (head := heads.get(point_id(job.document, 0))) is not None:
                job.head = head.record
                job.reach = max(head.record.reach, head.record.chunks)
                job.source = self._source or head.record.source
                if head.record.version == job.version and job.reach == head.record.chunks:
                    same.append(job)
        # A head may stand alone after a crash: only a document whose every chunk is there is unchanged.
        there = self._points.read(point_id(job.document, number) for job in same for number in range(1, job.reach))
        unchanged = {job for job in same if _whole(job, there)}
        for job in unchanged:
            if job.head is not None and job.head.source != job.source:
                self._points.mark(replace(job.head, source=job.source))
            self._report.unchanged += 1
        return [job for job, document in group if job not in unchanged and self._cut(job, document)]

    def _cut(self, job: Job, document: Document) -> bool:
        """Fill in the chunks and the vectors that the collection has for them; False if there are no chunks."""
        try:
            job.chunks = self._chunker.cut(document)
        except GircseError as error:
            self._fail(document, str(error))
            return False
        if not job.chunks:
            self._fail(document, "there is no text to embed in it")
            return False
        stored = self._points.read((point_id(job.document, number) for number in range(job.reach)), vectors=True)
        job.there = {point.record.number: point.record for point in stored.values()}
        by_text = {point.record.text: point for point in stored.values()}
        job.hashes = [fingerprint(chunk.text) for chunk in job.chunks]
        for number, text in enumerate(job.hashes):
            found = stored.get(point_id(job.document, number)) if job.reach else None
            if found is None or found.record.text != text:
                found = by_text.get(text)
            job.vectors.append(None if found is None else found.vector)
            if found is not None:
                job.lies[number] = found.record.number
        job.behind = max(job.reach, len(job.chunks))
        job.kept = len(job.lies)
        job.missing = len(job.chunks) - job.kept
        return True

    def _fail(self, document: Document, reason: str) -> None:
        if isinstance(document.id, str):
            self._seen.failed(document.id)
        self._report.failed.append(FailedDocument(str(document.id), reason))


def _whole(job: Job, there: dict[str, Stored]) -> bool:
    points = (there.get(point_id(job.document, number)) for number in range(1, job.reach))
    return all(point is not None and point.record.version == job.version for point in points)


def _json_metadata(document: Document) -> str:
    if not isinstance(document.metadata, Mapping):
        raise InputError(f"its metadata is a {type(document.metadata).__name__}, not a mapping")
    if bad := [key for key in document.metadata if not isinstance(key, str)]:
        raise InputError(f"its metadata has the key {bad[0]!r}, not a string")
    if "_chunk" in document.metadata:
        raise InputError("its metadata has the key '_chunk', where gircse keeps the chunk's place; rename it")
    try:
        text = json.dumps(dict(document.metadata), allow_nan=False, ensure_ascii=False, sort_keys=True)
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"its metadata is not JSON: {error}; use strings and numbers") from error
    if _depth(document.metadata) > _MAX_DEPTH:  # the embedded store pickles payloads, and Python's recursion is bounded
        raise InputError(f"its metadata is nested more than {_MAX_DEPTH} levels deep; flatten it")
    return text


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level := [
        inner
        for outer in level
        if isinstance(outer, Mapping | list | tuple)
        for inner in (outer.values() if isinstance(outer, Mapping) else outer)
    ]:
        depth += 1
    return depth
