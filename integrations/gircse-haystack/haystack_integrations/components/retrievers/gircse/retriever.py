"""GircseQdrantEmbeddingRetriever: documents by a query's embedding."""

from __future__ import annotations

import asyncio
from typing import Any, Self

from haystack import Document, component, default_from_dict, default_to_dict
from haystack.document_stores.types import FilterPolicy
from haystack.document_stores.types.filter_policy import apply_filter_policy

from haystack_integrations.document_stores.gircse import GircseQdrantDocumentStore


@component
class GircseQdrantEmbeddingRetriever:
    """Retrieves from a GircseQdrantDocumentStore what is most similar to a query's embedding.

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

        :param document_store: where the documents are.
        :param filters: narrow down the search.
        :param top_k: documents at most.
        :param filter_policy: whether filters given to `run` replace these or are merged with them.
        :raises ValueError: the store is another, or `top_k` is below 1.
        """
        if not isinstance(document_store, GircseQdrantDocumentStore):
            raise ValueError("document_store must be an instance of GircseQdrantDocumentStore")
        self.document_store = document_store
        self.filters = filters
        self.top_k = _check(top_k)
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

        :param query_embedding: from GircseTextEmbedder.
        :param filters: see `filter_policy`.
        :param top_k: documents at most; None: the component's.
        :returns: `documents`, best first; their score is the cosine.
        :raises DocumentStoreError: the store cannot be opened or does not answer.
        """
        chosen = apply_filter_policy(self.filter_policy, self.filters, filters)
        limit = self.top_k if top_k is None else _check(top_k)
        return {"documents": self.document_store.query(query_embedding, chosen, limit)}

    @component.output_types(documents=list[Document])
    async def run_async(
        self, query_embedding: list[float], filters: dict[str, Any] | None = None, top_k: int | None = None
    ) -> dict[str, list[Document]]:
        """`run` in a thread."""
        return await asyncio.to_thread(self.run, query_embedding, filters, top_k)


def _check(top_k: int) -> int:
    if top_k < 1:
        raise ValueError(f"top_k must be at least 1, not {top_k}")
    return top_k
