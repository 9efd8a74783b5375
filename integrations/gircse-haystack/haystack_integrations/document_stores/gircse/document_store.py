"""GircseQdrantDocumentStore: the collections of `gircse ingest` as a Haystack document store.

Haystack's own QdrantDocumentStore fixes its payload and the name of its vector, so it cannot read these collections.
Points are written with the payload described in `gircse_rag.qdrant.foreign`, so `gircse search`, LangChain and
LlamaIndex can read them. `gircse ingest` leaves them alone.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Self

from gircse_rag.errors import GircseError
from gircse_rag.lexical import Bm25Encoder
from gircse_rag.qdrant.foreign import find_former_ids, foreign_id, foreign_payload, read_payload
from gircse_rag.qdrant.lexical import choose_mode
from gircse_rag.qdrant.points import make_vectors
from gircse_rag.qdrant.queries import Options, Question, find_terms
from gircse_rag.qdrant.ranking import rank_points
from gircse_rag.qdrant.schema import VECTOR, ensure_collection
from gircse_rag.qdrant.stores import open_client, store_errors
from gircse_rag.redaction import redact, split_credentials
from haystack import Document, default_from_dict, default_to_dict
from haystack.document_stores.errors import DocumentStoreError, DuplicateDocumentError
from haystack.document_stores.types import DuplicatePolicy
from qdrant_client import QdrantClient, models

from haystack_integrations.components.embedders.gircse import GircseDocumentEmbedder
from haystack_integrations.document_stores.gircse.filters import to_qdrant

_BATCH = 256


class GircseQdrantDocumentStore:
    """Haystack document store on a collection of `gircse ingest`, or on a new one that `gircse` can also use.

    Ids may be any strings. Filters use `meta.` fields, whichever library wrote the points.

    ```python
    store = GircseQdrantDocumentStore("notes", GircseDocumentEmbedder(), path="./qdrant")
    ```
    """

    def __init__(
        self, collection: str, embedder: GircseDocumentEmbedder, path: str | None = None, url: str | None = None
    ) -> None:
        """Creates the store. The first use opens it.

        :param collection: name of the collection; created if it does not exist.
        :param embedder: must use the model that the collection was created with. It embeds documents that are written
            without an embedding.
        :param path: folder of an embedded store; "./qdrant" if there is neither a url nor QDRANT_URL.
        :param url: URL of a Qdrant server; its API key comes from QDRANT_API_KEY.
        """
        self.collection = collection
        self.embedder = embedder
        self.path = path
        self.url = url
        self._client: QdrantClient | None = None
        self._encoder: Bm25Encoder | None = None  # of the lexical vector; set when the client is opened
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out client and lock: a copy opens its own."""
        return {**self.__dict__, "_client": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.RLock())

    @property
    def client(self) -> QdrantClient:
        """The Qdrant client.

        :raises DocumentStoreError: the collection was created with another model or spec (the message names both), or
            not by gircse; the embedded store is open elsewhere, or the server does not answer.
        """
        with self._lock, _translate_errors():
            if self._client is None:
                client = open_client(self.path, self.url)
                try:
                    with store_errors(client):
                        self._encoder = ensure_collection(client, self.collection, self.embedder.embedder.spec)
                except BaseException:
                    client.close()  # an open client locks the folder
                    raise
                self._client = client
            return self._client

    def close(self) -> None:
        """Closes the client. The next use opens it again."""
        with self._lock:
            if self._client is not None:
                self._client.close()
                self._client = None

    def to_dict(self) -> dict[str, Any]:
        """Serializes the store.

        :raises ValueError: the URL holds a password, which would be written in plain text.
        """
        if self.url is not None and split_credentials(self.url)[1] is not None:
            raise ValueError(
                f"{redact(self.url)} holds a password, which a serialized store would show; set QDRANT_URL to it, and "
                "leave `url` out"
            )
        return default_to_dict(  # type: ignore[no-any-return]
            self, collection=self.collection, embedder=self.embedder, path=self.path, url=self.url
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Deserializes the store."""
        return default_from_dict(cls, data)  # type: ignore[no-any-return]

    def count_documents(self) -> int:
        """Counts the points of the collection."""
        with self._connection() as client:
            return int(client.count(self.collection, exact=True).count)

    def filter_documents(self, filters: dict[str, Any] | None = None) -> list[Document]:
        """Returns the documents that match the filters, or all documents.

        :raises FilterError: the filter is invalid.
        """
        query_filter, documents, offset = to_qdrant(filters), [], None
        with self._connection() as client:
            while True:
                points, offset = client.scroll(
                    self.collection, query_filter, limit=_BATCH, offset=offset, with_payload=True
                )
                documents += [_read_point(point.id, point.payload) for point in points]
                if offset is None:
                    return documents

    def write_documents(self, documents: list[Document], policy: DuplicatePolicy = DuplicatePolicy.NONE) -> int:
        """Writes text, metadata and embedding of documents. Returns how many were written.

        :param policy: what to do with ids that exist already or twice in `documents`. NONE means FAIL.
        :raises ValueError: the input is not a list of documents, or a document has no text, an invalid text, invalid
            metadata or an embedding of another length. Nothing was written.
        :raises DuplicateDocumentError: an id exists already (policy FAIL). Nothing was written.
        """
        if not isinstance(documents, list) or not all(isinstance(document, Document) for document in documents):
            raise ValueError("write_documents expects a list of Documents")
        accepted = self._apply_policy(documents, policy)
        payloads = [foreign_payload(each.id, _require_text(each), each.meta) for each in accepted.values()]
        missing = {point_id: each for point_id, each in accepted.items() if each.embedding is None}
        if missing:
            embedded = self.embedder.run(list(missing.values()))["documents"]
            accepted |= dict(zip(missing, embedded, strict=True))
        dimension = self.embedder.embedder.dimension
        for each in accepted.values():
            if len(each.embedding) != dimension:
                raise ValueError(
                    f"document {each.id} has an embedding of {len(each.embedding)} numbers, but the collection takes "
                    f"{dimension}; embed with GircseDocumentEmbedder, or write it without an embedding"
                )
        points = [
            models.PointStruct(
                id=point_id,
                vector=make_vectors(each.embedding, _require_text(each), self._encoder),
                payload=payload,
            )
            for (point_id, each), payload in zip(accepted.items(), payloads, strict=True)
        ]
        with self._connection() as client:
            for start in range(0, len(points), _BATCH):
                client.upsert(self.collection, points[start : start + _BATCH], wait=True)
            if former := find_former_ids(client, self.collection, [each.id for each in accepted.values()]):
                client.delete(self.collection, models.PointIdsList(points=list(former.values())), wait=True)
        return len(points)

    def delete_documents(self, document_ids: list[str]) -> None:
        """Deletes documents by ids; unknown ids are ignored."""
        with self._connection() as client:
            former = find_former_ids(client, self.collection, document_ids)
            points: list[Any] = sorted({*map(foreign_id, document_ids), *former.values()})
            client.delete(self.collection, models.PointIdsList(points=points), wait=True)

    def query(self, embedding: Sequence[float], filters: dict[str, Any] | None, top_k: int) -> list[Document]:
        """Returns the documents most similar to an embedding, best first; `score` is the cosine similarity."""
        with self._connection() as client:
            points = client.query_points(
                self.collection,
                query=list(embedding),
                using=VECTOR,
                query_filter=to_qdrant(filters),
                limit=top_k,
                with_payload=True,
            ).points
        return [replace(_read_point(point.id, point.payload), score=point.score) for point in points]

    def query_hybrid(
        self, query: str, embedding: Sequence[float], filters: dict[str, Any] | None, top_k: int
    ) -> list[Document]:
        """Returns the documents that answer a query best by embedding and by words, as `gircse search` does.

        `score` is the fused score, 0 to 1.

        :raises DocumentStoreError: an earlier version made the collection without a lexical vector.
        """
        with self._connection() as client:
            choose_mode("hybrid", self._encoder, client, self.collection)
            assert self._encoder is not None
            question = Question(list(embedding), find_terms(self._encoder, query))
            options = Options(top_k, condition=to_qdrant(filters))
            (ranked,) = rank_points(client, self.collection, [question], "hybrid", options)
        return [replace(_read_point(each.point.id, each.point.payload), score=each.score) for each in ranked]

    @contextmanager
    def _connection(self) -> Iterator[QdrantClient]:
        client = self.client
        with _translate_errors(), store_errors(client):
            yield client

    def _apply_policy(self, documents: list[Document], policy: DuplicatePolicy) -> dict[str, Document]:
        """Apply the duplicate policy. Returns the documents to write, by point id."""
        ids = [foreign_id(document.id) for document in documents]
        with self._connection() as client:
            existing = {str(point.id) for point in client.retrieve(self.collection, ids, with_payload=False)}
            former = find_former_ids(client, self.collection, [document.id for document in documents])
            existing |= set(map(foreign_id, former))
        accepted: dict[str, Document] = {}
        for point_id, document in zip(ids, documents, strict=True):
            if (point_id in existing or point_id in accepted) and policy != DuplicatePolicy.OVERWRITE:
                if policy == DuplicatePolicy.SKIP:
                    continue
                raise DuplicateDocumentError(
                    f"document {document.id} exists already; pass policy=DuplicatePolicy.SKIP or OVERWRITE"
                )
            accepted[point_id] = document
        return accepted


def _require_text(document: Document) -> str:
    if document.content is None:
        raise ValueError(f"document {document.id} has no text; this store holds only text documents")
    return document.content  # type: ignore[no-any-return]


def _read_point(point_id: object, payload: dict[str, Any] | None) -> Document:
    own_id, text, metadata = read_payload(point_id, payload)
    return Document(id=own_id, content=text, meta=metadata)


@contextmanager
def _translate_errors() -> Iterator[None]:
    """Raise GircseError as Haystack's DocumentStoreError."""
    try:
        yield
    except GircseError as error:
        raise DocumentStoreError(str(error)) from error
