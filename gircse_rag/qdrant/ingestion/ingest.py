"""Documents into a collection: `ingest`.

    a thread      read, check, look up, cut             intake.py    one group of documents ahead
    the caller's  embed, a batch at a time              here         Ctrl-C ends it at once
    a thread      write                                 writing.py   one batch behind

So at most two batches are embedded and not acknowledged, and nothing piles up: whoever is slowest, the others wait.
A document that the collection has as it is needs no vector; chunks whose text its stored version had keep theirs. A
run that is cut short loses what had not been written; the next run finds out by looking.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING, Literal

from qdrant_client import QdrantClient

from gircse_rag.backoff import DEADLINE
from gircse_rag.documents.chunking import Chunker
from gircse_rag.documents.document import Document, SkippedFile
from gircse_rag.errors import InputError
from gircse_rag.qdrant.ingestion.checking import Checker
from gircse_rag.qdrant.ingestion.intake import Intake
from gircse_rag.qdrant.ingestion.job import Job
from gircse_rag.qdrant.ingestion.prefetch import Prefetcher
from gircse_rag.qdrant.ingestion.report import FailedDocument, IngestReport, Progress
from gircse_rag.qdrant.ingestion.seen import Seen
from gircse_rag.qdrant.ingestion.sync import check_source
from gircse_rag.qdrant.ingestion.sync import sync as remove_gone
from gircse_rag.qdrant.ingestion.writing import Writer
from gircse_rag.qdrant.points import Points
from gircse_rag.qdrant.retry import Retry
from gircse_rag.qdrant.schema import ensure_collection
from gircse_rag.qdrant.stores import store_errors, store_name

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
) -> IngestReport:
    """Bring documents into a collection, which is made if there is none.

    The same documents again embed nothing and add nothing. A document with another text or other metadata replaces what
    the collection has under its id; the old points go after the new ones are acknowledged. A document that cannot be
    embedded or stored fails alone: nothing of it is kept, and what the collection had of it is there as before
    (`FailedDocument`). Documents are taken from the iterable as they are needed, on another thread.

    Args:
        documents: what `read_documents` yields, or your own; a SkippedFile goes into the report.
        chunker: how they are cut; None cuts as much as fits, at the largest units of meaning.
        batch_size: chunks embedded at once.
        progress: called after every batch and every group of documents looked up.
        source: a name for where these documents come from, recorded with each. The last to bring a document owns it.
        sync: delete the documents that `source` brought once and that are not among these; "dry-run" only counts and
            names them. Nothing is deleted after a run with no document, or with a file that could not be read.
        deadline: seconds for which a request to the store that fails is repeated, where that helps (`retry`).

    Raises:
        InputError: an item is no Document (index: which), an argument is refused, or the collection's name is not one
            Qdrant takes.
        SpecMismatchError: the collection was made with another model or spec; both are named.
        StoreError: the collection is not one of ours, has another dimension or was deleted meanwhile, or the store does
            not answer or confirm until the deadline. Run again: what was written before is not embedded again.
    """
    if isinstance(documents, Document | str):
        raise InputError(f"documents must be an iterable of Document, not one {type(documents).__name__}")
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, not {batch_size}")
    check_source(source, sync)
    ask = Retry(store_name(client), deadline)
    report = IngestReport()
    with store_errors(client), closing(Seen()) as seen:
        ask(ensure_collection, client, collection, embedder.spec)
        points = Points(client, collection, ask)
        chunker = chunker or Chunker(embedder.tokenizer, embedder.spec)
        intake = Intake(points, chunker, Checker(chunker, seen, report, source))
        with (
            ThreadPoolExecutor(1, "gircse-write") as writing,
            closing(Prefetcher(intake.groups(documents))) as groups,
            ask.stopped_by_errors(),
        ):
            _Ingest(embedder, Writer(points, report), writing, report, batch_size, progress).run(groups)
        if sync:
            remove_gone(points, str(source), seen, report, delete=sync is True)
        report.retries = ask.repeated
    return report


class _Ingest:
    """What happens on the caller's thread."""

    def __init__(
        self,
        embedder: Embedder,
        writer: Writer,
        writing: ThreadPoolExecutor,
        report: IngestReport,
        batch_size: int,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self._embedder = embedder
        self._writer = writer
        self._writing = writing
        self._written: Future[None] | None = None
        self._report = report
        self._batch_size = batch_size
        self._progress = progress
        self._waiting: deque[tuple[Job, int]] = deque()  # (document, chunk) without a vector

    def run(self, groups: Iterable[list[Job]]) -> None:
        for group in groups:
            if ready := [job for job in group if not job.missing]:
                self._write(ready)
            for job in group:
                self._waiting.extend((job, number) for number, vector in enumerate(job.vectors) if vector is None)
            while len(self._waiting) >= self._batch_size:
                self._embed_batch()
            self._tell()
        while self._waiting:
            self._embed_batch()
        self._wait()
        self._tell()

    def _embed_batch(self) -> None:
        batch: list[tuple[Job, int]] = []
        while self._waiting and len(batch) < self._batch_size:
            job, number = self._waiting.popleft()
            if not job.failed:
                batch.append((job, number))
        if not batch:
            return
        result = self._embedder.embed(
            [job.chunks[number].text for job, number in batch],
            role="document",
            steps=self._embedder.spec.document_steps,
            on_error="return",
        )
        self._wait()  # before looking at `failed`: the writer may have failed a document that has chunks in this batch
        embedded: dict[Job, list[int]] = {}
        failed: dict[Job, str] = {}
        for row, (job, number) in enumerate(batch):
            if (error := result.errors.get(row)) is not None:
                failed.setdefault(job, _where(job, number) + str(error))
            elif result.truncated[row]:
                failed.setdefault(job, _where(job, number) + "longer than the model reads; please report this as a bug")
            else:
                job.set_vector(number, result.vectors[row])
                embedded.setdefault(job, []).append(number)
                self._report.embedded += 1
                self._report.prompt_tokens += int(result.prompt_tokens[row])
        failed = {job: reason for job, reason in failed.items() if not job.failed}
        for job, reason in failed.items():
            job.failed = True
            self._report.failed.append(FailedDocument(job.document, reason))
        good = {job: numbers for job, numbers in embedded.items() if not job.failed}
        complete = [job for job in good if not job.missing]
        self._write(complete, {job: numbers for job, numbers in good.items() if job.missing}, list(failed))
        self._tell()

    def _write(
        self, complete: list[Job], begun: dict[Job, list[int]] | None = None, failed: Iterable[Job] = ()
    ) -> None:
        """Hand vectors to the writer, once it has written those of the batch before."""
        self._wait()
        self._written = self._writing.submit(self._writer.write, complete, begun or {}, failed)

    def _wait(self) -> None:
        if self._written is not None:
            self._written.result()

    def _tell(self) -> None:
        if self._progress is not None:
            r = self._report
            self._progress(Progress(r.documents, r.embedded, r.prompt_tokens))


def _where(job: Job, number: int) -> str:
    chunk = job.chunks[number]
    return f"chunk {number} (characters {chunk.start} to {chunk.end}): "
