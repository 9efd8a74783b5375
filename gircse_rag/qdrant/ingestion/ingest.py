"""Ingest documents into a collection: `ingest`.

    intake thread     read, check, look up, chunk       intake.py    one group of documents ahead
    caller's thread   embed one batch at a time         this file    Ctrl-C ends it at once
    writer thread     write                             writing.py   one batch behind

At most two batches are embedded but not acknowledged. The slowest stage sets the pace: the others wait for it, so
nothing piles up. An unchanged document is not embedded, and an unchanged chunk of a changed document keeps its vector.
An interrupted run loses only what was not written; the next run looks up what is there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from qdrant_client import QdrantClient

from gircse_rag.backoff import DEADLINE
from gircse_rag.documents.chunking import Chunker
from gircse_rag.documents.document import Document, SkippedFile
from gircse_rag.errors import InputError, without_index
from gircse_rag.qdrant.ingestion.checking import Checker
from gircse_rag.qdrant.ingestion.dry_run import plan_ingest
from gircse_rag.qdrant.ingestion.intake import Intake
from gircse_rag.qdrant.ingestion.job import Job
from gircse_rag.qdrant.ingestion.prefetch import Prefetcher
from gircse_rag.qdrant.ingestion.report import FailedDocument, IngestReport, Progress
from gircse_rag.qdrant.ingestion.seen import Seen
from gircse_rag.qdrant.ingestion.sync import check_source, sync_source
from gircse_rag.qdrant.ingestion.writing import Writer
from gircse_rag.qdrant.points import Points
from gircse_rag.qdrant.retry import Retry
from gircse_rag.qdrant.schema import ensure_collection
from gircse_rag.qdrant.stores import store_errors, store_name
from gircse_rag.tokens import tokenizer_of

if TYPE_CHECKING:
    from gircse_rag.embedder import Embedder


def ingest(
    documents: Iterable[Document | SkippedFile],
    *,
    collection: str,
    embedder: Embedder,
    client: QdrantClient,
    chunker: Chunker | None = None,
    batch_size: int = 128,
    progress: Callable[[Progress], None] | None = None,
    source: str | None = None,
    sync: bool | Literal["dry-run"] = False,
    deadline: float = DEADLINE,
    language: str | None = None,
    indexes: Mapping[str, str] | None = None,
) -> IngestReport:
    """Ingest documents into a collection, and create the collection if needed.

    Idempotent: ingesting the same documents again embeds and adds nothing. A document with a changed text or changed
    metadata replaces the stored one of the same id; old points are deleted after the new ones are acknowledged. A
    document that cannot be embedded or stored fails alone: its stored version is kept (see `FailedDocument`).

    Args:
        documents: from `read_documents`, or your own. They are consumed lazily, on another thread. A SkippedFile is
            only reported.
        chunker: how to cut documents. None makes chunks as long as the model reads, at the largest units of meaning.
        batch_size: chunks per embedding batch.
        progress: called on this thread for every document that is embedded, after every batch, and after every group
            of documents that was looked up.
        source: name of the documents' source, recorded with each. A document belongs to the last source to bring it.
        sync: delete documents that `source` brought in an earlier run but not in this one. Nothing is deleted if the
            run had no document or a file that could not be read. "dry-run" embeds, writes and deletes nothing; it
            reports what a run would do (`to_add`, `to_update`, `to_embed`, `gone`).
        deadline: seconds for which failing requests to the store are retried, where that helps (`retry`).
        language: language of the texts, for the lexical vector (`gircse_rag.lexical.LANGUAGES`). None takes the
            collection's, and English for a new collection.
        indexes: metadata key (see `field_path`) -> kind of payload index, such as {"kind": "keyword"}, created where
            the store has indexes. Filters need them on a server in strict mode, and are fast with them on any.

    Raises:
        InputError: an item is not a Document (index: which), an argument is invalid, the collection has another
            language, or Qdrant does not allow the collection's name.
        SpecMismatchError: the collection was made with another model or spec; both are named.
        StoreError: the collection was not made by gircse, has another dimension or was deleted during the run; or the
            store did not answer or confirm before the deadline. Run again: nothing written is embedded again.
    """
    if isinstance(documents, Document | str):
        raise InputError(f"documents must be an iterable of Document, not one {type(documents).__name__}")
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, not {batch_size}")
    check_source(source, sync)
    if sync == "dry-run":
        return plan_ingest(
            documents,
            collection=collection,
            embedder=embedder,
            client=client,
            chunker=chunker or Chunker(tokenizer_of(embedder), embedder.spec),
            source=str(source),
            deadline=deadline,
            progress=progress,
        )
    retry = Retry(store_name(client), deadline)
    report = IngestReport()
    with store_errors(client), closing(Seen()) as seen:
        lexical = retry(ensure_collection, client, collection, embedder.spec, language, indexes)
        points = Points(client, collection, retry)
        chunker = chunker or Chunker(tokenizer_of(embedder), embedder.spec)
        intake = Intake(points, chunker, Checker(chunker, seen, report, source))
        with (
            ThreadPoolExecutor(1, "gircse-write") as executor,
            closing(Prefetcher(intake.groups(documents))) as groups,
            retry.stopped_by_errors(),
        ):
            _Pipeline(embedder, Writer(points, report, lexical), executor, report, batch_size, progress).run(groups)
        if sync:
            sync_source(points, str(source), seen, report, delete=True)
        report.retries = retry.repeated
    return report


@dataclass
class _Pipeline:
    """The stage on the caller's thread: collect chunks into batches, embed them, hand them to the writer."""

    embedder: Embedder
    writer: Writer
    executor: ThreadPoolExecutor
    report: IngestReport
    batch_size: int
    progress: Callable[[Progress], None] | None
    last_write: Future[None] | None = None
    pending: deque[tuple[Job, int]] = field(default_factory=deque)  # (job, chunk number) still to embed
    finished: int = 0  # of `Progress`

    def run(self, groups: Iterable[list[Job]]) -> None:
        for group in groups:
            if ready := [job for job in group if not job.missing]:
                self._write(ready, {}, ())
            for job in group:
                self.pending.extend((job, number) for number, vector in enumerate(job.vectors) if vector is None)
            while len(self.pending) >= self.batch_size:
                self._embed_batch()
            self._report_progress()
        while self.pending:
            self._embed_batch()
        self._wait_for_write()
        self._report_progress()

    def _embed_batch(self) -> None:
        """Embed the next batch of pending chunks and start writing its outcome."""
        batch: list[tuple[Job, int]] = []
        while self.pending and len(batch) < self.batch_size:
            job, number = self.pending.popleft()
            if not job.failed:
                batch.append((job, number))
        if not batch:
            return
        missing = {job: job.missing for job, _ in batch}
        embedded_documents = 0

        def count_text(row: int) -> None:
            nonlocal embedded_documents
            job = batch[row][0]
            missing[job] -= 1
            if not missing[job]:
                embedded_documents += 1
                self._report_progress(embedded_documents)

        result = self.embedder.embed(
            [job.chunks[number].text for job, number in batch],
            role="document",
            steps=self.embedder.spec.document_steps,
            on_error="return",
            on_text=count_text,
        )
        self._wait_for_write()  # may set `failed` on a document with chunks in this batch, so wait before reading it
        embedded: dict[Job, list[int]] = {}
        failed: dict[Job, str] = {}
        for row, (job, number) in enumerate(batch):
            if (error := result.errors.get(row)) is not None:
                failed.setdefault(job, _describe_chunk(job, number) + without_index(error))
            elif result.truncated[row]:
                failed.setdefault(job, _describe_chunk(job, number) + "longer than the model reads: please report it")
            else:
                job.set_vector(number, result.vectors[row])
                embedded.setdefault(job, []).append(number)
                self.report.embedded += 1
                self.report.prompt_tokens += int(result.prompt_tokens[row])
        failed = {job: reason for job, reason in failed.items() if not job.failed}
        for job, reason in failed.items():
            job.failed = True
            self.report.failed.append(FailedDocument(job.document, reason))
        good = {job: numbers for job, numbers in embedded.items() if not job.failed}
        complete = [job for job in good if not job.missing]
        self._write(complete, {job: numbers for job, numbers in good.items() if job.missing}, list(failed))
        self._report_progress()

    def _write(self, complete: list[Job], begun: dict[Job, list[int]], failed: Iterable[Job]) -> None:
        """Start writing a batch on the writer thread, after the previous write has ended."""
        self._wait_for_write()
        self.last_write = self.executor.submit(self.writer.write, complete, begun, failed)

    def _wait_for_write(self) -> None:
        if self.last_write is not None:
            self.last_write.result()

    def _report_progress(self, embedded_documents: int = 0) -> None:
        if self.progress is not None:
            r = self.report
            # Never backwards: documents of the last batch count again once the writer thread has written them.
            self.finished = max(self.finished, r.documents + embedded_documents)
            self.progress(Progress(r.documents, r.embedded, r.prompt_tokens, self.finished))


def _describe_chunk(job: Job, number: int) -> str:
    chunk = job.chunks[number]
    return f"chunk {number} (characters {chunk.start} to {chunk.end}): "
