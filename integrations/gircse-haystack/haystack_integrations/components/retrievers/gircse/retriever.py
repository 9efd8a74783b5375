"""GircseQdrantEmbeddingRetriever and GircseQdrantHybridRetriever: retrieval by embedding, and by words too."""

from __future__ import annotations

import asyncio
from typing import Any, Self

from haystack import Document, component, default_from_dict, default_to_dict
from haystack.document_stores.types import FilterPolicy
from haystack.document_stores.types.filter_policy import apply_filter_policy

from haystack_integrations.document_stores.gircse import GircseQdrantDocumentStore


@component
class GircseQdrantEmbeddingRetriever:
    """Retrieves the documents of a GircseQdrantDocumentStore that are most similar to a query's embedding.

    ```python
    pipeline.add_component("embedder", GircseTextEmbedder())
    pipeline.add_component("retriever", GircseQdrantEmbeddingRetriever(store))
    pipeline.connect("embedder.embedding", "retriever.query_embedding")
    ```
    """

    def __init__(
        self,
        document_store: GircseQdrantDocumentStore,
        filters: dict[str, Any] | None = None,
        top_k: int = 10,
        filter_policy: str | FilterPolicy = FilterPolicy.REPLACE,
    ) -> None:
        """Creates the component.

        :param document_store: the store to search.
        :param filters: Haystack filters on the documents.
        :param top_k: maximum number of documents.
        :param filter_policy: whether filters passed to `run` replace `filters` or are merged with them.
        :raises ValueError: the store is not a GircseQdrantDocumentStore, or `top_k` is below 1.
        """
        if not isinstance(document_store, GircseQdrantDocumentStore):
            raise ValueError("document_store must be an instance of GircseQdrantDocumentStore")
        self.document_store = document_store
        self.filters = filters
        self.top_k = _check_top_k(top_k)
        self.filter_policy = FilterPolicy(filter_policy)

    def to_dict(self) -> dict[str, Any]:
        """Serializes the component."""
        return default_to_dict(  # type: ignore[no-any-return]
            self,
            document_store=self.document_store,
            filters=self.filters,
            top_k=self.top_k,
            filter_policy=self.filter_policy.value,
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Deserializes the component."""
        return default_from_dict(cls, data)  # type: ignore[no-any-return]

    @component.output_types(documents=list[Document])
    def run(
        self, query_embedding: list[float], filters: dict[str, Any] | None = None, top_k: int | None = None
    ) -> dict[str, list[Document]]:
        """Retrieves documents.

        :param query_embedding: embedding from GircseTextEmbedder.
        :param filters: combined with the component's filters according to `filter_policy`.
        :param top_k: maximum number of documents. None: the component's `top_k`.
        :returns: `documents`, best first; `score` is the cosine similarity.
        :raises DocumentStoreError: the store cannot be opened or does not answer.
        """
        combined_filters = apply_filter_policy(self.filter_policy, self.filters, filters)
        limit = self.top_k if top_k is None else _check_top_k(top_k)
        return {"documents": self.document_store.query(query_embedding, combined_filters, limit)}

    @component.output_types(documents=list[Document])
    async def run_async(
        self, query_embedding: list[float], filters: dict[str, Any] | None = None, top_k: int | None = None
    ) -> dict[str, list[Document]]:
        """Runs `run` in a thread."""
        return await asyncio.to_thread(self.run, query_embedding, filters, top_k)


@component
class GircseQdrantHybridRetriever(GircseQdrantEmbeddingRetriever):
    """Retrieves the documents that answer a query best by embedding and by words, as `gircse search` does.

    ```python
    pipeline.add_component("embedder", GircseTextEmbedder())
    pipeline.add_component("retriever", GircseQdrantHybridRetriever(store))
    pipeline.connect("embedder.embedding", "retriever.query_embedding")
    pipeline.run({"embedder": {"text": query}, "retriever": {"query": query}})
    ```
    """

    @component.output_types(documents=list[Document])
    def run(
        self,
        query: str,
        query_embedding: list[float],
        filters: dict[str, Any] | None = None,
        top_k: int | None = None,
    ) -> dict[str, list[Document]]:
        """Retrieves documents.

        :param query: the query's text, for its words.
        :param query_embedding: embedding from GircseTextEmbedder.
        :param filters: combined with the component's filters according to `filter_policy`.
        :param top_k: maximum number of documents. None: the component's `top_k`.
        :returns: `documents`, best first; `score` is the fused score, 0 to 1.
        :raises DocumentStoreError: the store cannot be opened or does not answer, or an earlier version made the
            collection without a lexical vector.
        """
        combined_filters = apply_filter_policy(self.filter_policy, self.filters, filters)
        limit = self.top_k if top_k is None else _check_top_k(top_k)
        return {"documents": self.document_store.query_hybrid(query, query_embedding, combined_filters, limit)}

    @component.output_types(documents=list[Document])
    async def run_async(
        self,
        query: str,
        query_embedding: list[float],
        filters: dict[str, Any] | None = None,
        top_k: int | None = None,
    ) -> dict[str, list[Document]]:
        """Runs `run` in a thread."""
        return await asyncio.to_thread(self.run, query, query_embedding, filters, top_k)


def _check_top_k(top_k: int) -> int:
    if top_k < 1:
        raise ValueError(f"top_k must be at least 1, not {top_k}")
    return top_k
