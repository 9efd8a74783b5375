"""Report what an ingest would do, without embedding or writing anything: `plan_ingest`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import closing
from typing import TYPE_CHECKING

from qdrant_client import QdrantClient

from gircse_rag.documents.chunking import Chunker
from gircse_rag.documents.document import Document, SkippedFile
from gircse_rag.qdrant.ingestion.checking import Checker
from gircse_rag.qdrant.ingestion.intake import Intake
from gircse_rag.qdrant.ingestion.report import IngestReport, Progress
from gircse_rag.qdrant.ingestion.seen import Seen
from gircse_rag.qdrant.ingestion.sync import sync_source
from gircse_rag.qdrant.limits import check_name
from gircse_rag.qdrant.points import Points
from gircse_rag.qdrant.retry import Retry
from gircse_rag.qdrant.schema import ensure_collection
from gircse_rag.qdrant.stores import store_errors, store_name

if TYPE_CHECKING:
    from gircse_rag.embedder import Embedder


def plan_ingest(
    documents: Iterable[Document | SkippedFile],
    *,
    collection: str,
    embedder: Embedder,
    client: QdrantClient,
    chunker: Chunker,
    source: str,
    deadline: float,
    progress: Callable[[Progress], None] | None = None,
) -> IngestReport:
    """Do what `ingest` does before it embeds: read, check, look up and chunk documents.

    Arguments and errors are those of `ingest`. The report has `to_add`, `to_update`, `to_embed` and `gone`. Documents
    that only the model or the store refuses are not in `failed`.
    """
    retry = Retry(store_name(client), deadline)
    report = IngestReport()
    with store_errors(client), closing(Seen()) as seen:
        check_name(collection)
        if not retry(client.collection_exists, collection):
            client = QdrantClient(":memory:")  # an empty collection stands in for the missing one
        ensure_collection(client, collection, embedder.spec)
        points = Points(client, collection, retry)
        for group in Intake(points, chunker, Checker(chunker, seen, report, source), write=False).groups(documents):
            for job in group:
                (report.to_add if job.head is None else report.to_update).append(job.document)
                report.to_embed += job.missing
            if progress is not None:
                progress(Progress(report.documents, 0, 0, report.documents))
        sync_source(points, source, seen, report, delete=False)
    report.retries = retry.repeated
    return report
