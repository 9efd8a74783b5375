"""GircseQdrantVectorStore: LlamaIndex's Qdrant store on the collections of `gircse ingest`.

Points are written with the payload described in `gircse_rag.qdrant.foreign`, so `gircse search`, LangChain and Haystack
can read them. `gircse ingest` leaves them alone.
"""

from __future__ import annotations

import json
from typing import Any, cast

from gircse_rag.errors import GircseError
from gircse_rag.qdrant.filters import as_filter, field_path
from gircse_rag.qdrant.foreign import foreign_payload, make_node
from gircse_rag.qdrant.schema import VECTOR, ensure_collection
from gircse_rag.qdrant.stores import store_errors
from llama_index.core.schema import BaseNode, MetadataMode
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQueryResult,
)
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import AsyncQdrantClient, QdrantClient, models

from llama_index.embeddings.gircse.base import GircseEmbedding

_NODE_KEYS = ("_node_content", "_node_type", "doc_id", "document_id", "ref_doc_id")
_DOCUMENT_KEYS = ("doc_id", "document_id", "ref_doc_id")
"""LlamaIndex's names for the id of a node's document. All points have the first."""
_BOUNDS = {
    FilterOperator.GT: "gt",
    FilterOperator.GTE: "gte",
    FilterOperator.LT: "lt",
    FilterOperator.LTE: "lte",
}
_CLAUSES = {FilterCondition.AND: "must", FilterCondition.OR: "should", FilterCondition.NOT: "must_not"}


class GircseQdrantVectorStore(QdrantVectorStore):
    """LlamaIndex vector store on a collection of `gircse ingest`, or on a new one that `gircse` can also use.

    Filters use plain metadata keys (`MetadataFilter(key="source", ...)`), whichever library wrote the points.

    Args:
        collection_name: created if it does not exist.
        client: a Qdrant client.
        embed_model: must use the model that the collection was created with.
        aclient: asynchronous client for the asynchronous methods.

    Raises:
        ValueError: the collection was created with another model or spec (the message names both) or not by gircse, or
            the server does not answer.
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
        """Build the points of nodes, with gircse-rag's payload and LlamaIndex's node fields.

        Raises:
            ValueError: a node's metadata cannot be stored as JSON.
        """
        points, ids = super()._build_points(nodes, sparse_vector_name)
        for node, point in zip(nodes, points, strict=True):
            text = node.get_content(metadata_mode=MetadataMode.NONE)
            metadata = json.loads(point.payload["_node_content"])["metadata"]  # LlamaIndex's JSON form of node.metadata
            node_fields = {key: point.payload[key] for key in _NODE_KEYS}
            point.payload = {**foreign_payload(node.node_id, text, metadata), **node_fields}
        return points, ids

    def parse_to_query_result(self, response: list[Any]) -> VectorStoreQueryResult:
        """Convert points to nodes, including points that other tools wrote, without a node."""
        for point in response:
            if "_node_content" not in (point.payload or {}):
                node = make_node(point.id, point.payload)
                point.payload = {"_node_content": json.dumps(node), "_node_type": node["class_name"]}
        return super().parse_to_query_result(response)

    def _build_subfilter(self, filters: MetadataFilters) -> models.Filter:
        """Build a Qdrant filter. Comparisons of metadata are those of `gircse_rag.qdrant.search`.

        Raises:
            ValueError: a value that cannot be compared, such as NaN or an integer that Qdrant would round.
        """
        ours: list[Any] = []
        rest: list[Any] = []
        for each in filters.filters:
            if not isinstance(each, MetadataFilter):
                rest.append(each)
            elif (comparison := _comparison(each)) is not None:
                ours += comparison.must or []
            else:
                rest.append(each.model_copy(update={"key": _payload_key(each.key)}))
        combined = cast(models.Filter, super()._build_subfilter(filters.model_copy(update={"filters": rest})))
        clause = _CLAUSES.get(filters.condition, "must")
        setattr(combined, clause, [*(getattr(combined, clause) or []), *ours])
        return combined


def _comparison(condition: MetadataFilter) -> models.Filter | None:
    """The condition as gircse makes it, or None if LlamaIndex makes it: other operators, and fields of the node."""
    value, operator = condition.value, condition.operator or FilterOperator.EQ
    if condition.key in _NODE_KEYS or (operator == FilterOperator.IN) != isinstance(value, list):
        return None
    if operator in _BOUNDS:
        return as_filter({condition.key: {_BOUNDS[operator]: value}})
    return as_filter({condition.key: value}) if operator in (FilterOperator.EQ, FilterOperator.IN) else None


def _payload_key(key: str) -> str:
    """The payload field of a filter's key: a metadata field, or a field of the node."""
    if key in _DOCUMENT_KEYS:
        return _DOCUMENT_KEYS[0]
    return key if key in _NODE_KEYS else field_path(key)
