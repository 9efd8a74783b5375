"""GircseQdrantDocumentStore: the collections of `gircse ingest` as a Haystack document store.

Haystack's own QdrantDocumentStore has a payload and a vector's name that cannot be chosen. What this one writes has
the payload that `gircse_rag.qdrant.foreign` describes: `gircse search`, LangChain and LlamaIndex read it, and `gircse
ingest` leaves it alone.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Self

from gircse_rag.errors import GircseError
from gircse_rag.qdrant.foreign import foreign_id, foreign_payload, read_payload
from gircse_rag.qdrant.schema import VECTOR, ensure_collection
from gircse_rag.qdrant.stores import open_client, store_errors
from haystack import Document, default_from_dict, default_to_dict
from haystack.document_stores.errors import DocumentStoreError, DuplicateDocumentError
from haystack.document_stores.types import DuplicatePolicy
from qdrant_client import QdrantClient, models

from haystack_integrations.components.embedders.gircse import GircseDocumentEmbedder
from haystack_integrations.document_stores.gircse.filters import to_qdrant

_PAGE = 256


class GircseQdrantDocumentStore:
    """A collection of `gircse ingest`, or a new one that `gircse` can use too.

    Ids may be any strings and come back as they were given; filters name `meta.` fields, whoever wrote the points.

    ```python
    store = GircseQdrantDocumentStore("notes", GircseDocumentEmbedder(), path="./qdrant")
    ```
    """

    def __init__(
        self, collection: str, embedder: GircseDocumentEmbedder, path: str | None = None, url: str | None = None
    ) -> None:
        """Creates the store; it is opened at its first use.

        :param collection: its name; made if there is none.
        :param embedder: has to be of the model that the collection was made with. Documents that come without an
            embedding are embedded by it.
        :param path: folder of an embedded store, "./qdrant" if nothing else is named.
        :param url: of a server; its key comes from QDRANT_API_KEY.
        """
        self.collection = collection
        self.embedder = embedder
        self.path = path
        self.url = url
        self._client: QdrantClient | None = None
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        """Of a copy: it opens the store anew."""
        return {**self.__dict__, "_client": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.RLock())

    @property
    def client(self) -> QdrantClient:
        """The Qdrant client.

        :raises DocumentStoreError: the collection was made with another model or spec (both are named) or is not one of
            gircse's, the embedded store is open elsewhere, or the server does not answer.
        """
        with self._lock, _errors():
            if self._client is None:
                client = open_client(self.path, self.url)
                try:
                    with store_errors(client):
                        ensure_collection(client, self.collection, self.embedder.embedder.spec)
                except BaseException:
                    client.close()  # or nobody else could open the folder
                    raise
                self._client = client
            return self._client

    def close(self) -> None:
        """Closes the client, if it is open; the next use opens it again."""
        with self._lock:
            if self._client is not None:
                self._client.close()
                self._client = None

    def to_dict(self) -> dict[str, Any]:
        """Serializes the store."""
        return default_to_dict(  # type: ignore[no-any-return]
            self, collection=self.collection, embedder=self.embedder, path=self.path, url=self.url
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Deserializes the store."""
        return default_from_dict(cls, data)  # type: ignore[no-any-return]

    def count_documents(self) -> int:
        """How many points there are."""
        with self._asking() as client:
            return int(client.count(self.collection, exact=True).count)

    def filter_documents(self, filters: dict[str, Any] | None = None) -> list[Document]:
        """The documents that match, all of them without a filter.

        :raises FilterError: the filter is not one.
        """
        wanted, found, offset = to_qdrant(filters), [], None
        with self._asking() as client:
            while True:
                points, offset = client.scroll(self.collection, wanted, limit=_PAGE, offset=offset, with_payload=True)
                found += [_document(point.id, point.payload) for point in points]
                if offset is None:
                    return found

    def write_documents(self, documents: list[Document], policy: DuplicatePolicy = DuplicatePolicy.NONE) -> int:
        """Writes text, metadata and embedding of documents; how many were written.

        :param policy: for ids that are there, or twice in `documents`. NONE is FAIL.
        :raises ValueError: they are no list of documents, one has no text or an embedding of another length, or
            gircse-rag refuses a text or metadata. Nothing was written.
        :raises DuplicateDocumentError: an id is there (policy FAIL). Nothing was written.
        """
        if not isinstance(documents, list) or not all(isinstance(document, Document) for document in documents):
            raise ValueError("write_documents expects a list of Documents")
        chosen = self._choose(documents, policy)
        payloads = [foreign_payload(each.id, _text(each), each.meta) for each in chosen.values()]
        bare = {point: each for point, each in chosen.items() if each.embedding is None}
        if bare:
            embedded = self.embedder.run(list(bare.values()))["documents"]
            chosen |= dict(zip(bare, embedded, strict=True))
        dimension = self.embedder.embedder.dimension
        for each in chosen.values():
            if len(each.embedding) != dimension:
                raise ValueError(
                    f"document {each.id} has an embedding of {len(each.embedding)} numbers, the collection takes "
                    f"{dimension}; embed with GircseDocumentEmbedder, or leave it to the store"
                )
        points = [
            models.PointStruct(id=point, vector={VECTOR: each.embedding}, payload=payload)
            for (point, each), payload in zip(chosen.items(), payloads, strict=True)
        ]
        with self._asking() as client:
            for start in range(0, len(points), _PAGE):
                client.upsert(self.collection, points[start : start + _PAGE], wait=True)
        return len(points)

    def delete_documents(self, document_ids: list[str]) -> None:
        """Deletes by ids; ids that are not there do no harm."""
        with self._asking() as client:
            points = models.PointIdsList(points=[foreign_id(own) for own in document_ids])
            client.delete(self.collection, points, wait=True)

    def query(self, embedding: Sequence[float], filters: dict[str, Any] | None, top_k: int) -> list[Document]:
        """The documents most similar to an embedding, best first; their score is the cosine."""
        with self._asking() as client:
            points = client.query_points(
                self.collection,
                query=list(embedding),
                using=VECTOR,
                query_filter=to_qdrant(filters),
                limit=top_k,
                with_payload=True,
            ).points
        return [replace(_document(point.id, point.payload), score=point.score) for point in points]

    @contextmanager
    def _asking(self) -> Iterator[QdrantClient]:
        client = self.client
        with _errors(), store_errors(client):
            yield client

    def _choose(self, documents: list[Document], policy: DuplicatePolicy) -> dict[str, Document]:
        """The documents to write, by the id of their point."""
        ids = [foreign_id(document.id) for document in documents]
        with self._asking() as client:
            there = {str(point.id) for point in client.retrieve(self.collection, ids, with_payload=False)}
        chosen: dict[str, Document] = {}
        for point, document in zip(ids, documents, strict=True):
            if (point in there or point in chosen) and policy != DuplicatePolicy.OVERWRITE:
                if policy == DuplicatePolicy.SKIP:
                    continue
                raise DuplicateDocumentError(
                    f"document {document.id} is there already; policy=DuplicatePolicy.SKIP or OVERWRITE says what to do"
                )
            chosen[point] = document
        return chosen


def _text(document: Document) -> str:
    if document.content is None:
        raise ValueError(f"document {document.id} has no text; this store holds texts")
    return document.content  # type: ignore[no-any-return]


def _document(point_id: object, payload: dict[str, Any] | None) -> Document:
    own, text, metadata = read_payload(point_id, payload)
    return Document(id=own, content=text, meta=metadata)


@contextmanager
def _errors() -> Iterator[None]:
    """What goes wrong in the store, as Haystack's callers know it."""
    try:
        yield
    except GircseError as error:
        raise DocumentStoreError(str(error)) from error
