"""GircseQdrantVectorStore: LlamaIndex's Qdrant store on the collections of `gircse ingest`.

What it writes has the payload that `gircse_rag.qdrant.foreign` describes: `gircse search`, LangChain and Haystack read
it, and `gircse ingest` leaves it alone.
"""

from __future__ import annotations

import json
from typing import Any, cast

from gircse_rag.errors import GircseError
from gircse_rag.qdrant.filters import field_path
from gircse_rag.qdrant.foreign import foreign_payload, payload_of, read_payload
from gircse_rag.qdrant.schema import VECTOR, ensure_collection
from gircse_rag.qdrant.stores import store_errors
from llama_index.core.schema import BaseNode, MetadataMode
from llama_index.core.vector_stores.types import MetadataFilter, MetadataFilters, VectorStoreQueryResult
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import AsyncQdrantClient, QdrantClient, models

from llama_index.embeddings.gircse.base import GircseEmbedding

_BESIDE_THE_METADATA = ("_node_content", "_node_type", "doc_id", "document_id", "ref_doc_id")


class GircseQdrantVectorStore(QdrantVectorStore):
    """A collection of `gircse ingest`, or a new one that `gircse` can use too.

    Filters name the metadata's fields plainly (`MetadataFilter(key="source", ...)`), whoever wrote the points.

    Args:
        collection_name: made if there is none.
        client: a Qdrant client.
        embed_model: of the model that the collection was made with.
        aclient: for the asynchronous methods.

    Raises:
        ValueError: the collection was made with another model or spec (both are named), is not one of gircse's, or the
            server does not answer.
    """

    def __init__(
        self,
        collection_name: str,
        client: QdrantClient,
        embed_model: GircseEmbedding,
        aclient: AsyncQdrantClient | None = None,
    ) -> None:
        try:
            with store_errors(client):
                ensure_collection(client, collection_name, embed_model.embedder.spec)
        except GircseError as error:
            raise ValueError(str(error)) from error
        super().__init__(collection_name, client=client, aclient=aclient, dense_vector_name=VECTOR)

    @classmethod
    def class_name(cls) -> str:
        return "GircseQdrantVectorStore"

    def _build_points(
        self, nodes: list[BaseNode], sparse_vector_name: str
    ) -> tuple[list[models.PointStruct], list[str]]:
        """
        Raises:
            ValueError: a node's metadata has no JSON form.
        """
        points, ids = super()._build_points(nodes, sparse_vector_name)
        for node, point in zip(nodes, points, strict=True):
            text = node.get_content(metadata_mode=MetadataMode.NONE)
            metadata = json.loads(point.payload["_node_content"])["metadata"]  # LlamaIndex's JSON form of node.metadata
            own = {key: point.payload[key] for key in _BESIDE_THE_METADATA}
            point.payload = {**foreign_payload(node.node_id, text, metadata), **own}
        return points, ids

    def parse_to_query_result(self, response: list[Any]) -> VectorStoreQueryResult:
        """As LlamaIndex's own, for points without a node too: LangChain's own store writes such."""
        for point in response:
            if "_node_content" not in (point.payload or {}):
                point.payload = payload_of(*read_payload(point.id, point.payload))
        return super().parse_to_query_result(response)

    def _build_subfilter(self, filters: MetadataFilters) -> models.Filter:
        named: list[Any] = [
            each.model_copy(update={"key": field_path(each.key)})
            if isinstance(each, MetadataFilter) and each.key not in _BESIDE_THE_METADATA
            else each
            for each in filters.filters
        ]
        return cast(models.Filter, super()._build_subfilter(filters.model_copy(update={"filters": named})))
