"""GircseQdrantVectorStore: LlamaIndex's Qdrant store on the collections of `gircse ingest`.

Points are written with the payload described in `gircse_rag.qdrant.foreign`, so `gircse search`, LangChain and Haystack
can read them. `gircse ingest` leaves them alone.
"""

from __future__ import annotations

import json
from collections.abc import Hashable
from dataclasses import replace
from typing import Any, cast

from gircse_rag.errors import GircseError
from gircse_rag.lexical import Bm25Encoder
from gircse_rag.lexical.fusion import DEPTH, fuse
from gircse_rag.qdrant.filters import as_filter, field_path
from gircse_rag.qdrant.foreign import foreign_payload, make_node
from gircse_rag.qdrant.lexical import LEXICAL, choose_mode
from gircse_rag.qdrant.points import make_vectors
from gircse_rag.qdrant.queries import count_texts
from gircse_rag.qdrant.schema import VECTOR, ensure_collection
from gircse_rag.qdrant.stores import store_errors
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.schema import BaseNode, MetadataMode
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import AsyncQdrantClient, QdrantClient, models

from llama_index.embeddings.gircse.base import GircseEmbedding

_NOTHING = VectorStoreQueryResult(nodes=[], similarities=[], ids=[])
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

    `vector_store_query_mode="hybrid"` ranks by embeddings and by words, as `gircse search` does; `"sparse"` by words
    alone.

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

    _encoder: Bm25Encoder | None = PrivateAttr(default=None)

    def __init__(
        self,
        collection_name: str,
        client: QdrantClient,
        embed_model: GircseEmbedding,
        aclient: AsyncQdrantClient | None = None,
    ) -> None:
        try:
            with store_errors(client):
                encoder = ensure_collection(client, collection_name, embed_model.embedder.spec)
        except GircseError as error:
            raise ValueError(str(error)) from error
        super().__init__(
            collection_name,
            client=client,
            aclient=aclient,
            dense_vector_name=VECTOR,
            sparse_vector_name=LEXICAL,
            enable_hybrid=encoder is not None,
            sparse_doc_fn=self._encode_nothing,
            sparse_query_fn=self._encode_questions,
            hybrid_fusion_fn=self._fuse_results,
        )
        self._encoder = encoder

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Query the collection.

        Raises:
            ValueError: the mode needs a lexical vector, and an earlier version made the collection without one.
        """
        prepared = self._prepare_query(query)
        return _NOTHING if prepared is None else super().query(prepared, **kwargs)

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """As `query`, with the asynchronous client."""
        prepared = self._prepare_query(query)
        return _NOTHING if prepared is None else await super().aquery(prepared, **kwargs)

    def _prepare_query(self, query: VectorStoreQuery) -> VectorStoreQuery | None:
        """Widen both rankings of a hybrid query to what fusion needs; None if nothing can be found."""
        if query.mode not in (VectorStoreQueryMode.HYBRID, VectorStoreQueryMode.SPARSE):
            return query
        try:
            choose_mode("hybrid", self._encoder, self._client, self.collection_name)
        except GircseError as error:
            raise ValueError(str(error)) from error
        if not self._encode_questions([query.query_str or ""])[0][0]:  # only stop words and signs
            return None if query.mode == VectorStoreQueryMode.SPARSE else replace(query, query_str=None)
        if query.mode == VectorStoreQueryMode.SPARSE:
            return query
        count = query.hybrid_top_k or query.similarity_top_k
        depth = max(count, DEPTH)
        return replace(query, similarity_top_k=depth, sparse_top_k=depth, hybrid_top_k=count)

    def _encode_questions(self, texts: list[str]) -> tuple[list[list[int]], list[list[float]]]:
        weights = [self._encoder.encode_question(text) if self._encoder else {} for text in texts]
        return [list(each) for each in weights], [list(each.values()) for each in weights]

    @staticmethod
    def _encode_nothing(texts: list[str]) -> tuple[list[list[int]], list[list[float]]]:
        """`_build_points` encodes the texts itself: LlamaIndex would add the metadata to them."""
        return [], []

    def _fuse_results(
        self, dense: VectorStoreQueryResult, lexical: VectorStoreQueryResult, alpha: float = 0.5, top_k: int = 2
    ) -> VectorStoreQueryResult:
        """Fuse as `gircse search` does. `alpha` has no effect: the weight depends on how sure BM25 is."""
        nodes = {node.node_id: node for result in (dense, lexical) for node in result.nodes or []}
        texts = count_texts(self._client, self.collection_name)
        best = fuse(_read_ranking(dense), _read_ranking(lexical), texts)[:top_k]
        return VectorStoreQueryResult(
            nodes=[nodes[each.id] for each in best],
            similarities=[each.score for each in best],
            ids=[each.id for each in best],
        )

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
            point.vector = make_vectors(node.get_embedding(), text, self._encoder)
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


def _read_ranking(result: VectorStoreQueryResult) -> list[tuple[Hashable, float]]:
    return [(node.node_id, score) for node, score in zip(result.nodes or [], result.similarities or [], strict=True)]


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
