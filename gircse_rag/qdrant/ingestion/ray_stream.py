"""The code that an ingest on Ray runs in its processes: a reader that makes parts, and workers that ingest them.

`read`      documents in, parts out; each document is checked against all earlier ones
`Worker`    part in, report out; looks up, chunks, embeds and writes the part's documents
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

from qdrant_client import QdrantClient

from gircse_rag.documents.chunking import Chunker
from gircse_rag.documents.document import Document, SkippedFile
from gircse_rag.errors import GircseError
from gircse_rag.qdrant.ingestion.checking import Checker
from gircse_rag.qdrant.ingestion.ingest import ingest
from gircse_rag.qdrant.ingestion.report import IngestReport
from gircse_rag.qdrant.ingestion.seen import Seen
from gircse_rag.qdrant.points import collection_gone

if TYPE_CHECKING:
    from gircse_rag.embedder import Embedder

API_KEY_VARIABLE = "QDRANT_API_KEY"
_CHARACTERS_PER_PART = 1_000_000


@dataclass(frozen=True)
class Work:
    """The settings of a run, sent to every process."""

    collection: str
    embedder: Callable[[], Embedder]
    client: Callable[[], QdrantClient]
    chunker: Callable[..., Chunker]
    batch_size: int
    source: str | None
    deadline: float
    api_key: str | None = field(repr=False)
    documents_per_part: int

    def open_client(self) -> QdrantClient:
        if self.api_key:
            os.environ.setdefault(API_KEY_VARIABLE, self.api_key)
        return self.client()


@dataclass
class Part:
    """A group of documents that travels from the reader to a worker, and back as a report.

    Attributes:
        documents: the checked documents; empty after the worker.
        report: the reader's report, then also the worker's.
        ids: ids of the documents, set by the worker.
        error: an error that ends the run, or None.
    """

    documents: list[Document] = field(default_factory=list)
    report: IngestReport = field(default_factory=IngestReport)
    ids: list[str] = field(default_factory=list)
    error: GircseError | None = None

    def table(self) -> Any:
        """Pickle the part into a Ray Data block: a pyarrow.Table of one row."""
        import pyarrow  # type: ignore[import-untyped]

        return pyarrow.table({"part": pyarrow.array([pickle.dumps(self)], pyarrow.large_binary())})


def read(documents: Callable[[], Iterable[Document | SkippedFile]], work: Work) -> Iterator[Any]:
    """Yield the documents as parts (`Part.table`), each document checked against all earlier ones."""
    passed: list[Document] = []
    characters = 0
    try:
        embedder = work.embedder()
        chunker = work.chunker(embedder.backend_tokenizer, embedder.spec)
        with closing(Seen()) as seen:
            checker = Checker(chunker, seen, IngestReport(), work.source)
            for _, document in chain.from_iterable(checker.groups(documents())):
                passed.append(document)
                characters += len(document.text)
                if len(passed) >= work.documents_per_part or characters >= _CHARACTERS_PER_PART:
                    yield Part(passed, checker.report).table()
                    passed, characters, checker.report = [], 0, IngestReport()
            yield Part(passed, checker.report).table()
    except GircseError as error:
        yield Part(error=error).table()


class Worker:
    """A process that embeds and writes. It loads the embedder with the first part, to report a failure in a part."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._embedder: Embedder | None = None

    def __call__(self, table: Any) -> Any:
        part: Part = pickle.loads(table["part"][0].as_py())
        try:
            if part.error is None and part.documents:
                part.report.add(self._ingest(part.documents))
        except GircseError as error:
            part.error = error
        part.ids = [document.id for document in part.documents]
        part.documents = []
        return part.table()

    def _ingest(self, documents: list[Document]) -> IngestReport:
        work = self._work
        if self._embedder is None:
            self._embedder = work.embedder()
            self._chunker = work.chunker(self._embedder.backend_tokenizer, self._embedder.spec)
            self._client = work.open_client()
            # If the collection is deleted during the run, no worker may recreate it: other workers' points are gone.
            vars(self._client)["create_collection"] = self._refuse_to_create
        report = ingest(
            documents,
            collection=work.collection,
            embedder=self._embedder,
            client=self._client,
            chunker=self._chunker,
            batch_size=work.batch_size,
            source=work.source,
            deadline=work.deadline,
        )
        report.duplicated, report.duplicates = 0, []  # counted by the reader, which sees all documents
        return report

    def _refuse_to_create(self, *args: Any, **options: Any) -> None:
        raise collection_gone(self._work.collection)
