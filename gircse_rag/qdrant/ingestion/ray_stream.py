"""What an ingest on Ray runs in its processes: a reader that makes parts, and workers that ingest them.

`read`      documents in, parts out: each document checked against all before it
`Worker`    a part in; looked up, cut, embedded, written; its report out
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

KEY = "QDRANT_API_KEY"
_PART_CHARACTERS = 1_000_000


@dataclass(frozen=True)
class Work:
    """What every process of a run has to know."""

    collection: str
    embedder: Callable[[], Embedder]
    client: Callable[[], QdrantClient]
    chunker: Callable[..., Chunker]
    batch_size: int
    source: str | None
    deadline: float
    key: str | None
    part_documents: int

    def open_client(self) -> QdrantClient:
        if self.key:
            os.environ.setdefault(KEY, self.key)
        return self.client()


@dataclass
class Part:
    """Some documents on their way: checked, then ingested.

    Attributes:
        report: what is known of them so far.
        ids: of the documents that were ingested.
        error: what ends the run.
    """

    documents: list[Document] = field(default_factory=list)
    report: IngestReport = field(default_factory=IngestReport)
    ids: list[str] = field(default_factory=list)
    error: GircseError | None = None

    def table(self) -> Any:
        """As a Ray Data block of one row: a pyarrow.Table."""
        import pyarrow  # type: ignore[import-untyped]

        return pyarrow.table({"part": pyarrow.array([pickle.dumps(self)], pyarrow.large_binary())})


def read(documents: Callable[[], Iterable[Document | SkippedFile]], work: Work) -> Iterator[Any]:
    """Documents in parts (`Part.table`), each checked against all before it."""
    passed: list[Document] = []
    characters = 0
    try:
        embedder = work.embedder()
        chunker = work.chunker(embedder.tokenizer, embedder.spec)
        with closing(Seen()) as seen:
            checker = Checker(chunker, seen, IngestReport(), work.source)
            for _, document in chain.from_iterable(checker.groups(documents())):
                passed.append(document)
                characters += len(document.text)
                if len(passed) >= work.part_documents or characters >= _PART_CHARACTERS:
                    yield Part(passed, checker.report).table()
                    passed, characters, checker.report = [], 0, IngestReport()
            yield Part(passed, checker.report).table()
    except GircseError as error:
        yield Part(error=error).table()


class Worker:
    """One process that embeds and writes. It makes its embedder with its first part, so a failure is a part's."""

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
            self._chunker = work.chunker(self._embedder.tokenizer, self._embedder.spec)
            self._client = work.open_client()
            # Made anew by one worker, it would lack what the others had written before it was deleted.
            vars(self._client)["create_collection"] = self._gone
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
        report.duplicated, report.duplicates = 0, []  # the reader, who knows all documents, has counted them
        return report

    def _gone(self, *args: Any, **options: Any) -> None:
        raise collection_gone(self._work.collection)
