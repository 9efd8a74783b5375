"""Store documents in Qdrant and search them with instructed questions.

    from gircse_rag.qdrant import Document, ingest, open_client, read_documents, search

    client = open_client("./qdrant")
    report = ingest(read_documents(["docs/"]), collection="docs", embedder=embedder, client=client)
    hits = search("How do I open a file?", collection="docs", embedder=embedder, client=client)

    ingestion/   documents -> points of a collection
    search       questions -> hits; filters: conditions on metadata; empty_result: why there is no hit
    schema       layout of a collection; points: layout of its points, reading and writing them
    stores       opening a local, edge or server store; retry: repeating failed requests
    ranking      dense, lexical and hybrid rankings; lexical: BM25 as a vector of the collection
    migration    embedding a collection again with another model
    verification finding damage by checksums
    foreign      points written by LangChain, LlamaIndex or Haystack
    edge/        Qdrant's engine inside this process

Vectors are NumPy arrays here, never tensors. `gircse_rag.documents` reads and cuts documents.
"""

from gircse_rag.documents.chunking import Chunker
from gircse_rag.documents.document import Document, SkippedFile
from gircse_rag.documents.readers import read_documents
from gircse_rag.qdrant.adding_lexical import LexicalReport, add_lexical
from gircse_rag.qdrant.damage import Damage, VerifyReport
from gircse_rag.qdrant.empty_result import explain_empty
from gircse_rag.qdrant.ingestion.deletion import delete_documents
from gircse_rag.qdrant.ingestion.ingest import ingest
from gircse_rag.qdrant.ingestion.report import FailedDocument, IngestReport, Progress
from gircse_rag.qdrant.migration import MigrationReport, migrate
from gircse_rag.qdrant.refining import search_coarse_to_fine
from gircse_rag.qdrant.schema import create_collection
from gircse_rag.qdrant.search import Hit, search, search_batch
from gircse_rag.qdrant.stores import open_client
from gircse_rag.qdrant.verification import verify

__all__ = [
    "Chunker",
    "Damage",
    "Document",
    "FailedDocument",
    "Hit",
    "IngestReport",
    "LexicalReport",
    "MigrationReport",
    "Progress",
    "SkippedFile",
    "VerifyReport",
    "add_lexical",
    "create_collection",
    "delete_documents",
    "explain_empty",
    "ingest",
    "migrate",
    "open_client",
    "read_documents",
    "search",
    "search_batch",
    "search_coarse_to_fine",
    "verify",
]
