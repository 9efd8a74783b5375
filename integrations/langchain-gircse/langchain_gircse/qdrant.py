"""GircseQdrantVectorStore: LangChain's Qdrant store on the collections of `gircse ingest`.

Points are written with the payload described in `gircse_rag.qdrant.foreign`, so `gircse search`, LlamaIndex and
Haystack can read them. `gircse ingest` leaves them alone.
"""

from __future__ import annotations

import inspect
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from gircse_rag.errors import InputError, SpecMismatchError, StoreError
from gircse_rag.lexical import Bm25Encoder
from gircse_rag.qdrant.foreign import find_former_ids, foreign_id, foreign_payload, read_payload
from gircse_rag.qdrant.lexical import LEXICAL, Mode, choose_mode
from gircse_rag.qdrant.points import make_vectors
from gircse_rag.qdrant.queries import Options, Question, find_terms
from gircse_rag.qdrant.ranking import rank_points
from gircse_rag.qdrant.schema import VECTOR, check_collection, ensure_collection
from gircse_rag.qdrant.stores import TIMEOUT, open_client, store_errors
from gircse_rag.spec import EmbeddingSpec
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_qdrant import QdrantVectorStore, RetrievalMode
from langchain_qdrant.qdrant import QdrantVectorStoreError
from qdrant_client import QdrantClient, models

from langchain_gircse.embeddings import GircseEmbeddings, translate_input_errors
from langchain_gircse.retriever import GircseRetriever, Steps

_MODES: dict[RetrievalMode, Mode] = {
    RetrievalMode.DENSE: "dense",
    RetrievalMode.SPARSE: "lexical",
    RetrievalMode.HYBRID: "hybrid",
}


class GircseQdrantVectorStore(QdrantVectorStore):
    """LangChain vector store on a collection of `gircse ingest`, or on a new one that `gircse` can also use.

    Ids may be any strings. Qdrant stores a UUID derived from the id; `Document.id` is the original id.

    Args:
        client: a Qdrant client.
        collection_name: created if it does not exist.
        embedding: must use the model that the collection was created with.
        retrieval_mode: DENSE ranks by embeddings, SPARSE by words (BM25), HYBRID by both, as `gircse search` does.

    Raises:
        QdrantVectorStoreError: the collection was created with another model or spec (the message names both) or not
            by gircse, or the server does not answer.
    """

    def __init__(
        self,
        client: QdrantClient,
        collection_name: str,
        embedding: GircseEmbeddings,
        retrieval_mode: RetrievalMode = RetrievalMode.DENSE,
    ) -> None:
        self._encoder = _prepare_collection(ensure_collection, client, collection_name, embedding)
        self._mode = _MODES[RetrievalMode(retrieval_mode)]
        with _translate_store_errors():
            choose_mode(self._mode, self._encoder, client, collection_name)
        super().__init__(
            client,
            collection_name,
            embedding,
            vector_name=VECTOR,
            sparse_vector_name=LEXICAL,
            retrieval_mode=retrieval_mode,
            validate_embeddings=False,
            validate_collection_config=False,
        )

    @classmethod
    def from_texts(  # type: ignore[override]
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        ids: Sequence[str | None] | None = None,
        collection_name: str = "langchain",
        *,
        batch_size: int = 64,
        retrieval_mode: RetrievalMode = RetrievalMode.DENSE,
        **options: Any,
    ) -> GircseQdrantVectorStore:
        """Open a store and add the texts.

        Args:
            options: arguments of QdrantClient, as for QdrantVectorStore: path, url, location (":memory:" or an
                address), host, port, api_key, prefer_grpc, grpc_port, https, prefix, timeout, ... With none of them the
                store is the server at QDRANT_URL, else the folder ./qdrant.

        Raises:
            TypeError: an option is unknown, or fixed by the collection.
            QdrantVectorStoreError: as for the constructor.
        """
        with _open_own_client(options) as client:
            store = cls(client, collection_name, embedding, retrieval_mode)  # type: ignore[arg-type]
            store.add_texts(texts, metadatas, ids, batch_size)
            return store

    @classmethod
    def from_existing_collection(  # type: ignore[override]
        cls,
        collection_name: str,
        embedding: GircseEmbeddings,
        *,
        retrieval_mode: RetrievalMode = RetrievalMode.DENSE,
        **options: Any,
    ) -> GircseQdrantVectorStore:
        """Open a store; `options` are those of `from_texts`.

        Raises:
            TypeError: as `from_texts`.
            QdrantVectorStoreError: as for the constructor, or the collection does not exist.
        """
        with _open_own_client(options, create=False) as client:
            _prepare_collection(check_collection, client, collection_name, embedding)
            return cls(client, collection_name, embedding, retrieval_mode)

    def add_texts(  # type: ignore[override]
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        ids: Sequence[str | None] | None = None,
        batch_size: int = 64,
        **kwargs: Any,
    ) -> list[str]:
        """Embed texts as documents and store them, replacing points with the same ids. Returns the ids.

        A missing id becomes a random UUID. All texts are embedded before the first is written, `batch_size` points per
        request. `kwargs` go to `upsert`.

        Raises:
            GircseInvalidRequestError: a text or its metadata is invalid; nothing was written.
            ValueError: texts, ids and metadatas differ in number.
        """
        texts = list(texts)
        own_ids = [own_id or str(uuid.uuid4()) for own_id in ids or [None] * len(texts)]
        metadatas = metadatas or [{} for _ in texts]
        if not len(texts) == len(own_ids) == len(metadatas):
            raise ValueError(
                f"the numbers of texts ({len(texts)}), ids ({len(own_ids)}) and metadatas ({len(metadatas)}) differ; "
                "pass one of each per text"
            )
        with translate_input_errors():
            payloads = [
                foreign_payload(own_id, text, metadata or {})
                for own_id, text, metadata in zip(own_ids, texts, metadatas, strict=True)
            ]
        vectors = self._require_embeddings("add_texts").embed_documents(texts)
        points = [
            models.PointStruct(id=foreign_id(own_id), vector=make_vectors(vector, text, self._encoder), payload=payload)
            for own_id, text, payload, vector in zip(own_ids, texts, payloads, vectors, strict=True)
        ]
        for start in range(0, len(points), batch_size):
            self.client.upsert(self.collection_name, points[start : start + batch_size], **kwargs)
        if former := find_former_ids(self.client, self.collection_name, own_ids):
            self.client.delete(self.collection_name, models.PointIdsList(points=list(former.values())))
        return own_ids

    def similarity_search_with_score(  # type: ignore[override]
        self,
        query: str,
        k: int = 4,
        filter: models.Filter | None = None,
        search_params: models.SearchParams | None = None,
        offset: int = 0,
        score_threshold: float | None = None,
        *args: Any,
        instruction: str | None = None,
        steps: Steps | None = None,
        hybrid_fusion: None = None,
        **kwargs: Any,
    ) -> list[tuple[Document, float]]:
        """Search with a question under an instruction. Further arguments are those of QdrantVectorStore.

        `similarity_search`, `similarity_search_with_relevance_scores` and all retrievers go this way, so they take
        `instruction=` and `steps=` too. The score is the cosine similarity in retrieval mode DENSE, BM25 in SPARSE, and
        the fused score, 0 to 1, in HYBRID. `score_threshold` is a minimum cosine similarity, also in HYBRID, and a
        minimum BM25 score in SPARSE. `search_params` and further arguments go to Qdrant, in mode DENSE only.
        """
        vector = None if self._mode == "lexical" else self._embed_query(query, instruction, steps)
        if self._mode == "dense":
            return super().similarity_search_with_score_by_vector(
                vector or [], k, filter, search_params, offset, score_threshold, *args, **kwargs
            )
        return self.search_by_question(query, vector, k, filter, offset, score_threshold)

    def max_marginal_relevance_search(
        self,
        query: str,
        *args: Any,
        instruction: str | None = None,
        steps: Steps | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """Search for diverse documents. Takes `instruction=` and `steps=`, and the arguments of QdrantVectorStore."""
        vector = self._embed_query(query, instruction, steps)
        return super().max_marginal_relevance_search_by_vector(vector, *args, **kwargs)

    def _embed_query(self, query: str, instruction: str | None, steps: Steps | None) -> list[float]:
        embeddings = self._require_embeddings("a search")
        assert isinstance(embeddings, GircseEmbeddings)
        return embeddings.embed_query(query, instruction=instruction, steps=steps)

    def search_by_question(
        self,
        query: str,
        vector: list[float] | None,
        k: int = 4,
        filter: models.Filter | None = None,
        offset: int = 0,
        score_threshold: float | None = None,
        **kwargs: Any,
    ) -> list[tuple[Document, float]]:
        """As `similarity_search_with_score`, for a query that is embedded already; mode SPARSE takes no vector."""
        if self._mode == "dense" or self._encoder is None:
            dense = {"k": k, "filter": filter, "offset": offset, "score_threshold": score_threshold, **kwargs}
            return self.similarity_search_with_score_by_vector(vector or [], **dense)
        if given := sorted(name for name, value in kwargs.items() if value is not None):
            raise TypeError(f"retrieval mode {self.retrieval_mode.value} does not take {', '.join(given)}")
        question = Question(vector, find_terms(self._encoder, query))
        options = Options(k, offset, filter, score_threshold)
        with _translate_store_errors(), store_errors(self.client):
            (ranked,) = rank_points(self.client, self.collection_name, [question], self._mode, options)
        return [(self._document_from_point(each.point, "", "", ""), each.score) for each in ranked]

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> bool | None:  # type: ignore[override]
        """Delete by ids; unknown ids are ignored."""
        return super().delete([*self._find_point_ids(ids or [])], **kwargs)

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:  # type: ignore[override]
        """Return the documents with these ids, in any order; unknown ids are skipped."""
        return super().get_by_ids(self._find_point_ids(ids))

    def _find_point_ids(self, ids: Sequence[str]) -> list[str]:
        former = find_former_ids(self.client, self.collection_name, ids)
        return sorted({*map(foreign_id, ids), *former.values()})

    def as_retriever(self, **kwargs: Any) -> GircseRetriever:
        """Return a retriever that takes `instruction=` and `steps=`, here and in each `invoke`."""
        tags = kwargs.pop("tags", None) or [*self._get_retriever_tags()]
        return GircseRetriever(vectorstore=self, tags=tags, **kwargs)

    @classmethod
    def _document_from_point(
        cls, scored_point: Any, collection_name: str, content_payload_key: str, metadata_payload_key: str
    ) -> Document:
        own_id, text, metadata = read_payload(scored_point.id, scored_point.payload)
        return Document(id=own_id, page_content=text, metadata=metadata)


def _prepare_collection(
    prepare: Callable[[QdrantClient, str, EmbeddingSpec], Bm25Encoder | None],
    client: QdrantClient,
    collection_name: str,
    embedding: GircseEmbeddings,
) -> Bm25Encoder | None:
    """Check or create the collection. Returns the encoder of its lexical vector, or None if it has none."""
    if not isinstance(embedding, GircseEmbeddings):
        raise TypeError(f"embedding must be GircseEmbeddings, not {type(embedding).__name__}")
    with _translate_store_errors(), store_errors(client):
        return prepare(client, collection_name, embedding.embedder.spec)


@contextmanager
def _translate_store_errors() -> Iterator[None]:
    try:
        yield
    except (InputError, SpecMismatchError, StoreError) as error:
        raise QdrantVectorStoreError(str(error)) from error


_CLIENT_OPTIONS = frozenset(inspect.signature(QdrantClient).parameters) - {"kwargs"}
_OPEN_CLIENT_OPTIONS = {"path", "url", "prefer_grpc", "grpc_port"}
_FIXED = frozenset(inspect.signature(QdrantVectorStore.construct_instance).parameters)


def _open_client(options: Mapping[str, Any], *, create: bool) -> QdrantClient:
    given = {name: value for name, value in options.items() if value is not None}
    for name in given.keys() - _CLIENT_OPTIONS:
        if name in _FIXED:
            raise TypeError(
                f"{name} is fixed by the collections of gircse; for settings of your own, create the collection with "
                "gircse_rag.qdrant.create_collection, or use langchain_qdrant's QdrantVectorStore"
            )
        raise TypeError(f"QdrantClient has no option {name!r}; it has {', '.join(sorted(_CLIENT_OPTIONS))}")
    if given.keys() <= _OPEN_CLIENT_OPTIONS:
        return open_client(create=create, **given)
    server = {"api_key": os.environ.get("QDRANT_API_KEY"), "timeout": TIMEOUT, "check_compatibility": False}
    try:
        return QdrantClient(**{**({} if given.get("location") == ":memory:" else server), **given})
    except ValueError as error:
        raise InputError(str(error)) from error


@contextmanager
def _open_own_client(options: Mapping[str, Any], *, create: bool = True) -> Iterator[QdrantClient]:
    """Open a client for the caller to keep. An error closes it, because an open client locks its folder."""
    with _translate_store_errors():
        client = _open_client(options, create=create)
    try:
        yield client
    except BaseException:
        client.close()
        raise
