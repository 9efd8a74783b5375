"""GircseQdrantVectorStore: LangChain's Qdrant store on the collections of `gircse ingest`.

What it writes has the payload that `gircse_rag.qdrant.foreign` describes: `gircse search`, LlamaIndex and Haystack read
it, and `gircse ingest` leaves it alone.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from gircse_rag.errors import InputError, SpecMismatchError, StoreError
from gircse_rag.qdrant.foreign import foreign_id, foreign_payload, read_payload
from gircse_rag.qdrant.schema import VECTOR, check_collection, ensure_collection
from gircse_rag.qdrant.stores import open_client, store_errors
from gircse_rag.spec import EmbeddingSpec
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_qdrant import QdrantVectorStore
from langchain_qdrant.qdrant import QdrantVectorStoreError
from qdrant_client import QdrantClient, models

from langchain_gircse.embeddings import GircseEmbeddings, refusals
from langchain_gircse.retriever import GircseRetriever


class GircseQdrantVectorStore(QdrantVectorStore):
    """A collection of `gircse ingest`, or a new one that `gircse` can use too.

    Ids may be any strings: what is no UUID becomes one, and comes back as it was given. `Document.id` is set, and the
    metadata is what was stored.

    Args:
        client: a Qdrant client.
        collection_name: made if there is none.
        embedding: has to be of the model that the collection was made with.

    Raises:
        QdrantVectorStoreError: the collection was made with another model or spec (both are named), is not one of
            gircse's, or the server does not answer.
    """

    def __init__(self, client: QdrantClient, collection_name: str, embedding: GircseEmbeddings) -> None:
        _prepare(ensure_collection, client, collection_name, embedding)
        super().__init__(
            client,
            collection_name,
            embedding,
            vector_name=VECTOR,
            validate_embeddings=False,
            validate_collection_config=False,
        )

    @classmethod
    def from_texts(  # type: ignore[override]
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        collection_name: str = "langchain",
        path: str | None = None,
        url: str | None = None,
    ) -> GircseQdrantVectorStore:
        """Open the store in the folder `path` or at `url`, and add the texts."""
        with _opened(path, url) as client:
            store = cls(client, collection_name, embedding)  # type: ignore[arg-type]
            store.add_texts(texts, metadatas, ids)
            return store

    @classmethod
    def from_existing_collection(  # type: ignore[override]
        cls, collection_name: str, embedding: GircseEmbeddings, *, path: str | None = None, url: str | None = None
    ) -> GircseQdrantVectorStore:
        """Open the store in the folder `path` or at `url`.

        Raises:
            QdrantVectorStoreError: as the constructor, or there is no such collection.
        """
        with _opened(path, url, create=False) as client:
            _prepare(check_collection, client, collection_name, embedding)
            return cls(client, collection_name, embedding)

    def add_texts(  # type: ignore[override]
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        ids: Sequence[str | None] | None = None,
        batch_size: int = 64,
        **kwargs: Any,
    ) -> list[str]:
        """Embed texts as documents and store them, over what has their ids; the ids, made up where none is given.

        All texts are embedded before the first is written, `batch_size` points a request. `kwargs` go to `upsert`.

        Raises:
            GircseInvalidRequestError: a text or its metadata is refused; nothing was written.
        """
        texts = list(texts)
        own_ids = [given or str(uuid.uuid4()) for given in ids or [None] * len(texts)]
        metadatas = metadatas or [{} for _ in texts]
        if not len(texts) == len(own_ids) == len(metadatas):
            raise ValueError(f"{len(texts)} texts, {len(own_ids)} ids and {len(metadatas)} metadatas; give one a text")
        with refusals():
            payloads = [
                foreign_payload(own, text, metadata or {})
                for own, text, metadata in zip(own_ids, texts, metadatas, strict=True)
            ]
        vectors = self._require_embeddings("add_texts").embed_documents(texts)
        points = [
            models.PointStruct(id=foreign_id(own), vector={VECTOR: vector}, payload=payload)
            for own, payload, vector in zip(own_ids, payloads, vectors, strict=True)
        ]
        for start in range(0, len(points), batch_size):
            self.client.upsert(self.collection_name, points[start : start + batch_size], **kwargs)
        return own_ids

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> bool | None:  # type: ignore[override]
        """Delete by ids; ids that are not there do no harm."""
        return super().delete([foreign_id(own) for own in ids or []], **kwargs)

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:  # type: ignore[override]
        """The documents that are there, in any order."""
        return super().get_by_ids([foreign_id(own) for own in ids])

    def as_retriever(self, **kwargs: Any) -> GircseRetriever:
        """A retriever that takes `instruction=` and `steps=`, here and at each `invoke`."""
        tags = kwargs.pop("tags", None) or [*self._get_retriever_tags()]
        return GircseRetriever(vectorstore=self, tags=tags, **kwargs)

    @classmethod
    def _document_from_point(
        cls, scored_point: Any, collection_name: str, content_payload_key: str, metadata_payload_key: str
    ) -> Document:
        own, text, metadata = read_payload(scored_point.id, scored_point.payload)
        return Document(id=own, page_content=text, metadata=metadata)


def _prepare(
    how: Callable[[QdrantClient, str, EmbeddingSpec], None],
    client: QdrantClient,
    collection_name: str,
    embedding: GircseEmbeddings,
) -> None:
    """Check, or make, the collection."""
    if not isinstance(embedding, GircseEmbeddings):
        raise TypeError(f"embedding has to be GircseEmbeddings, not {type(embedding).__name__}")
    with _as_langchain_says(), store_errors(client):
        how(client, collection_name, embedding.embedder.spec)


@contextmanager
def _as_langchain_says() -> Iterator[None]:
    try:
        yield
    except (InputError, SpecMismatchError, StoreError) as error:
        raise QdrantVectorStoreError(str(error)) from error


@contextmanager
def _opened(path: str | None, url: str | None, *, create: bool = True) -> Iterator[QdrantClient]:
    """A client that nobody else has: left open after an error, it would keep its folder from everybody."""
    with _as_langchain_says():
        client = open_client(path, url, create=create)
    try:
        yield client
    except BaseException:
        client.close()
        raise
