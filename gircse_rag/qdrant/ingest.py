"""Documents into a collection: `ingest`.

A document is looked up, and left alone if the collection has this version of it; it is cut; its chunks wait for a
batch and are embedded; and once the last of them has a vector it is written. Chunks whose text the stored version had
too keep their vectors. A run that is cut short loses what had not been written; the next run finds out by looking.

Chunk 0 is written first: it alone says how far the document's points may reach (`Record.reach`), so whatever a crash
leaves behind is found by asking for ids, never by scanning. Points of an older, longer version are deleted after the
new ones are acknowledged.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qdrant_client import QdrantClient, models

from gircse_rag.errors import InputError
from gircse_rag.qdrant.chunking import Chunk, Chunker
from gircse_rag.qdrant.documents import Document, SkippedFile
from gircse_rag.qdrant.points import Points, Record, make_payload, point_id
from gircse_rag.qdrant.report import FailedDocument, IngestReport, Progress
from gircse_rag.qdrant.schema import VECTOR, ensure_collection, store_errors
from gircse_rag.tokens import check_text

if TYPE_CHECKING:
    from gircse_rag.embedder import Embedder

# Documents are looked up together, to save round trips; few enough, and few enough characters, to bound the memory.
_GROUP_DOCUMENTS = 64
_GROUP_CHARACTERS = 4_000_000
_MAX_DEPTH = 64


def ingest(
    documents: Iterable[Document | SkippedFile],
    *,
    collection: str,
    embedder: Embedder,
    client: QdrantClient,
    batch_size: int = 64,
    progress: Callable[[Progress], None] | None = None,
) -> IngestReport:
    """Bring documents into a collection, which is made if there is none.

    The same documents again embed nothing and add nothing. A document with another text or other metadata replaces what
    the collection has under its id; the old points go after the new ones are acknowledged. A document that cannot be
    embedded or stored fails alone: nothing of it is written. Documents are taken from the iterable as they are needed.

    Args:
        documents: what `read_documents` yields, or your own; a SkippedFile goes into the report.
        batch_size: chunks embedded at once.
        progress: called after every batch and every group of documents looked up.

    Raises:
        InputError: an item is no Document (index: which), or the collection's name is not one Qdrant takes.
        SpecMismatchError: the collection was made with another model or spec; both are named.
        StoreError: the collection is not one of ours or has another dimension, or the server does not answer or
            confirm. Run again: what was written before is not embedded again.
    """
    if isinstance(documents, Document | str):
        raise InputError(f"documents must be an iterable of Document, not one {type(documents).__name__}")
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, not {batch_size}")
    with store_errors(client):
        ensure_collection(client, collection, embedder.spec)
        return _Ingest(collection, embedder, client, batch_size, progress).run(documents)


@dataclass(eq=False)
class _Job:
    """A document that is new or changed, from lookup to write."""

    document: Document
    metadata: dict[str, Any]
    version: str
    reach: int  # of the stored version; 0: there is none
    chunks: list[Chunk] = field(default_factory=list)
    hashes: list[str] = field(default_factory=list)
    vectors: list[list[float] | None] = field(default_factory=list)
    kept: int = 0
    failed: bool = False

    @property
    def complete(self) -> bool:
        return not self.failed and None not in self.vectors


class _Ingest:
    def __init__(
        self,
        collection: str,
        embedder: Embedder,
        client: QdrantClient,
        batch_size: int,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self._embedder = embedder
        self._points = Points(client, collection)
        self._batch_size = batch_size
        self._progress = progress
        self._chunker = Chunker(embedder.tokenizer, embedder.spec)
        self._report = IngestReport()
        self._waiting: deque[tuple[_Job, int]] = deque()  # (job, chunk number) without a vector
        # Hash of a document's id -> hash of its version. Numbers, not strings: there may be millions.
        self._seen: dict[int, int] = {}

    def run(self, documents: Iterable[Document | SkippedFile]) -> IngestReport:
        for group in self._groups(documents):
            self._take(group)
            while len(self._waiting) >= self._batch_size:
                self._embed_batch()
        while self._waiting:
            self._embed_batch()
        return self._report

    def _groups(self, documents: Iterable[Document | SkippedFile]) -> Iterator[list[_Job]]:
        """Check documents one by one; yield them a few at a time, still without a look at the collection."""
        group: list[_Job] = []
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
            group.append(job)
            characters += len(item.text)
            if len(group) == _GROUP_DOCUMENTS or characters >= _GROUP_CHARACTERS:
                yield group
                group, characters = [], 0
        if group:
            yield group

    def _check(self, document: Document) -> _Job | None:
        """A job for the document, or None if the same one was given before in this run."""
        if not isinstance(document.id, str) or not document.id.strip():
            raise InputError(f"its id is {document.id!r}, not a string that names it")
        try:
            document.id.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"its id {document.id!r} holds a lone surrogate: it was decoded wrongly") from error
        check_text(document.text)
        metadata = _json_metadata(document)
        parts = [document.id, document.text, metadata, document.markdown, self._chunker.recipe]
        version = _hash(json.dumps(parts, ensure_ascii=False))
        key, value = hash(document.id), hash(version)
        if key in self._seen:
            if self._seen[key] != value:
                raise InputError(
                    "its id was used before in this run, for another text or other metadata, and the first one stands; "
                    "give each document an id of its own (files: ingest the common parent of their folders)"
                )
            return None
        self._seen[key] = value
        return _Job(document, json.loads(metadata), version, reach=0)

    def _take(self, group: Sequence[_Job]) -> None:
        """Sort out what the collection has already; cut the rest and put its chunks in line."""
        heads = self._points.read(point_id(job.document.id, 0) for job in group)
        same: dict[str, list[str]] = {}
        for job in group:
            head, _ = heads.get(point_id(job.document.id, 0), (None, []))
            if head is not None:
                job.reach = max(head.reach, head.chunks)
                if head.version == job.version and head.reach == head.chunks:
                    same[job.document.id] = [point_id(job.document.id, number) for number in range(head.chunks)]
        # A head may stand alone after a crash: only a document whose every chunk is there is unchanged.
        there = self._points.read(point for points in same.values() for point in points)
        ready = []
        for job in group:
            points = same.get(job.document.id)
            if points and all(point in there and there[point][0].version == job.version for point in points):
                self._report.unchanged += 1
                continue
            self._cut(job)
            if job.complete:
                ready.append(job)
        self._write(ready)
        self._tell()

    def _cut(self, job: _Job) -> None:
        job.chunks = self._chunker.chunks(job.document.text, markdown=job.document.markdown)
        if not job.chunks:
            self._fail(job.document, "there is no text to embed in it")
            job.failed = True
            return
        points = (point_id(job.document.id, number) for number in range(job.reach))
        vectors = {record.text: vector for record, vector in self._points.read(points, vectors=True).values()}
        job.hashes = [_hash(chunk.text) for chunk in job.chunks]
        job.vectors = [vectors.get(text) for text in job.hashes]
        self._waiting.extend((job, number) for number, vector in enumerate(job.vectors) if vector is None)
        job.kept = sum(vector is not None for vector in job.vectors)

    def _embed_batch(self) -> None:
        batch: list[tuple[_Job, int]] = []
        while self._waiting and len(batch) < self._batch_size:
            job, number = self._waiting.popleft()
            if not job.failed:
                batch.append((job, number))
        if batch:
            result = self._embedder.embed(
                [job.chunks[number].text for job, number in batch],
                role="document",
                steps=self._embedder.spec.document_steps,
                on_error="return",
            )
            for row, (job, number) in enumerate(batch):
                if (error := result.errors.get(row)) is not None:
                    self._fail_chunk(job, number, str(error))
                elif result.truncated[row]:
                    self._fail_chunk(job, number, "it is longer than the model reads; please report this as a bug")
                else:
                    job.vectors[number] = result.vectors[row].tolist()
                    self._report.embedded += 1
                    self._report.prompt_tokens += int(result.prompt_tokens[row])
            jobs = {id(job): job for job, _ in batch}
            self._write([job for job in jobs.values() if job.complete])
        self._tell()

    def _write(self, jobs: Sequence[_Job]) -> None:
        points = [[self._point(job, chunk.number) for chunk in job.chunks] for job in jobs]
        self._points.write([of_job[0] for of_job in points])
        self._points.write([point for of_job in points for point in of_job[1:]])
        for job in jobs:
            if job.reach > len(job.chunks):
                self._shorten(job)
            self._report.reused += job.kept
            if job.reach:
                self._report.updated += 1
            else:
                self._report.added += 1

    def _shorten(self, job: _Job) -> None:
        """Delete what is left of an older, longer version; only then may the head forget that it is there."""
        count = len(job.chunks)
        stale = (point_id(job.document.id, number) for number in range(count, job.reach))
        self._report.deleted += self._points.delete(stale)
        job.reach = count
        self._points.write([self._point(job, 0)])

    def _point(self, job: _Job, number: int) -> models.PointStruct:
        count = len(job.chunks)
        reach = max(job.reach, count) if number == 0 else 0
        record = Record(job.document.id, job.version, job.hashes[number], number, count, reach)
        vector = job.vectors[number]
        assert vector is not None
        return models.PointStruct(
            id=point_id(job.document.id, number),
            vector={VECTOR: vector},
            payload=make_payload(record, job.chunks[number], job.metadata),
        )

    def _fail_chunk(self, job: _Job, number: int, reason: str) -> None:
        if not job.failed:
            chunk = job.chunks[number]
            self._fail(job.document, f"chunk {number} (characters {chunk.start} to {chunk.end}): {reason}")
            job.failed = True

    def _fail(self, document: Document, reason: str) -> None:
        self._report.failed.append(FailedDocument(str(document.id), reason))

    def _tell(self) -> None:
        if self._progress is not None:
            r = self._report
            documents = r.added + r.updated + r.unchanged + len(r.failed)
            self._progress(Progress(documents, r.embedded, r.prompt_tokens))


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


def _depth(value: object) -> int:
    depth, level = 0, [value]
    while level := [
        inner
        for outer in level
        if isinstance(outer, Mapping | list | tuple)
        for inner in (outer.values() if isinstance(outer, Mapping) else outer)
    ]:
        depth += 1
    return depth


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
