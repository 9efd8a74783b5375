"""Documents into Qdrant and instructed questions out of it.

    from gircse_rag.qdrant import Document, ingest, open_client, read_documents, search

    client = open_client("./qdrant")
    report = ingest(read_documents(["docs/"]), collection="docs", embedder=embedder, client=client)
    hits = search("How do I open a file?", collection="docs", embedder=embedder, client=client)

One way through: `documents` reads, `chunking` cuts, `ingest` embeds and writes, `search` asks. `schema` and `points`
are what the last two agree on: the collection, and what a point of it holds. This package never sees a tensor.
"""

from gircse_rag.qdrant.documents import Document, SkippedFile
from gircse_rag.qdrant.ingest import ingest
from gircse_rag.qdrant.migration import MigrationReport, migrate
from gircse_rag.qdrant.readers import read_documents
from gircse_rag.qdrant.report import FailedDocument, IngestReport, Progress
from gircse_rag.qdrant.schema import create_collection
from gircse_rag.qdrant.search import Hit, search, search_batch, search_coarse_to_fine
from gircse_rag.qdrant.stores import open_client

__all__ = [
    "Document",
    "FailedDocument",
    "Hit",
    "IngestReport",
    "MigrationReport",
    "Progress",
    "SkippedFile",
    "create_collection",
    "ingest",
    "migrate",
    "open_client",
    "read_documents",
    "search",
    "search_batch",
    "search_coarse_to_fine",
]
