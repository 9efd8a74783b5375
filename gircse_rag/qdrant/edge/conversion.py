"""Convert between the models of qdrant_client and those of qdrant_edge, whose names nearly match.

Features that the engine lacks raise StoreError; nothing is ignored silently.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime
from typing import Any

import numpy as np
import qdrant_edge as edge
from pydantic import BaseModel
from qdrant_client import models

from gircse_rag.errors import StoreError

_NAMES = {"Range": "RangeFloat", "DatetimeRange": "RangeDateTime"}
_HARMLESS = frozenset({"wait", "timeout", "ordering", "consistency", "parallel", "method", "max_retries"})
"""Settings that are always satisfied here, with one process and acknowledged writes."""


def refuse(settings: Mapping[str, Any]) -> None:
    """Raise StoreError if a setting is given that the engine does not support."""
    if unknown := sorted(name for name, value in settings.items() if value is not None and name not in _HARMLESS):
        raise StoreError(f"an edge store does not know {', '.join(unknown)}; a Qdrant server may")


def to_edge_filter(query_filter: models.Filter | None, *, hidden: str) -> edge.Filter:
    """Convert the filter `query_filter` and exclude the point `hidden`."""
    hide = edge.HasIdCondition({hidden})
    return edge.Filter(must=[] if query_filter is None else [_convert(query_filter)], must_not=[hide])


def _convert_query(query: object, using: str | None) -> Any:
    """Convert a vector or a nearest-neighbour query, with or without MMR."""
    vector, mmr = (query.nearest, query.mmr) if isinstance(query, models.NearestQuery) else (query, None)
    if mmr is None:
        return edge.Query.Nearest(_convert_vector(vector), using=using)
    # qdrant_edge takes the opposite weight: 1 means similarity only.
    diversity = 0.5 if mmr.diversity is None else mmr.diversity
    return edge.Mmr(_floats(vector), 1 - diversity, mmr.candidates_limit or 100, using)


def to_edge_point(point: models.PointStruct) -> edge.Point:
    """Convert a point with named vectors, dense or sparse."""
    return edge.Point(point.id, _convert_vectors(point), point.payload or {})


def to_edge_point_vectors(point: models.PointVectors) -> edge.PointVectors:
    """Convert new vectors of an existing point."""
    return edge.PointVectors(point.id, _convert_vectors(point))


def _convert_vectors(point: models.PointStruct | models.PointVectors) -> dict[str, Any]:
    if not isinstance(point.vector, dict):
        raise StoreError(f"point {point.id}: an edge store takes named vectors")
    return {name: _convert_vector(vector) for name, vector in point.vector.items()}


def query_request(
    query: Any,
    using: str | None = None,
    query_filter: models.Filter | None = None,
    limit: int = 10,
    offset: int | None = None,
    score_threshold: float | None = None,
    with_payload: Any = True,
    with_vectors: Any = False,
    **others: Any,
) -> edge.QueryRequest:
    """Convert the arguments of `QdrantClient.query_points` to an engine request."""
    refuse(others)
    return edge.QueryRequest(
        limit=limit,
        offset=offset,
        query=_convert_query(query, using),
        filter=None if query_filter is None else _convert(query_filter),
        score_threshold=score_threshold,
        with_payload=selection(with_payload),
        with_vector=with_vectors,
    )


def count_indexed(about: dict[str, Any], info: edge.ShardInfo) -> int:
    """Count the dense vectors in the index. The engine's own figure adds the sparse ones, which always count."""
    sparse = len(about.get("sparse_vectors", {})) * (info.points_count - 1)
    return max(0, info.indexed_vectors_count - sparse)


def collection_info(about: dict[str, Any], info: edge.ShardInfo) -> models.CollectionInfo:
    """Build the result of `get_collection`. See `EdgeShard.about` for `about`."""
    vectors = {
        name: models.VectorParams(size=size, distance=models.Distance(distance))
        for name, (size, distance) in about["vectors"].items()
    }
    sparse_vectors = {
        name: models.SparseVectorParams(modifier=models.Modifier.IDF if idf else None)
        for name, idf in about.get("sparse_vectors", {}).items()
    }
    return models.CollectionInfo(
        status=models.CollectionStatus.GREEN,
        optimizer_status=models.OptimizersStatusOneOf.OK,
        points_count=info.points_count - 1,  # the reserved one
        indexed_vectors_count=count_indexed(about, info),
        segments_count=info.segments_count,
        payload_schema={
            field: models.PayloadIndexInfo(
                data_type=models.PayloadSchemaType(str(index.data_type).rpartition(".")[2].lower()), points=index.points
            )
            for field, index in info.payload_schema.items()
        },
        config=models.CollectionConfig(
            params=models.CollectionParams(vectors=vectors, sparse_vectors=sparse_vectors or None),
            hnsw_config=models.HnswConfig(m=16, ef_construct=100, full_scan_threshold=10_000),
            optimizer_config=models.OptimizersConfig(
                deleted_threshold=0.2, vacuum_min_vector_number=1000, default_segment_number=0, flush_interval_sec=0
            ),
            metadata=about["metadata"],
        ),
    )


def selection(with_payload: Any) -> Any:
    """Convert a payload selection: True, False, a list of keys or a selector."""
    if isinstance(with_payload, models.PayloadSelectorInclude):
        return list(with_payload.include)
    if isinstance(with_payload, models.PayloadSelectorExclude):
        return edge.PayloadSelector.Exclude(list(with_payload.exclude))
    return with_payload if isinstance(with_payload, bool) else list(with_payload)


def from_edge_record(point: edge.Record) -> models.Record:
    """Convert a stored point."""
    return models.Record(id=plain_id(point.id), payload=point.payload, vector=_from_edge_vectors(point.vector))


def from_edge_hit(point: edge.ScoredPoint) -> models.ScoredPoint:
    """Convert a point that a query returned."""
    return models.ScoredPoint(
        id=plain_id(point.id),
        version=point.version,
        score=point.score,
        payload=point.payload,
        vector=_from_edge_vectors(point.vector),
    )


def plain_id(value: Any) -> int | str:
    """A point id as qdrant_client uses it; the engine returns UUID objects."""
    return value if isinstance(value, int) else str(value)


def _convert_vector(vector: Any) -> Any:
    if isinstance(vector, models.SparseVector):
        return edge.SparseVector(vector.indices, vector.values)
    return _floats(vector)


def _from_edge_vectors(vectors: Any) -> Any:
    """Convert the named vectors of a point; None if it has none, for which the engine has {}."""
    if not isinstance(vectors, Mapping):
        return vectors or None
    return {
        name: models.SparseVector(indices=vector.indices, values=vector.values)
        if isinstance(vector, edge.SparseVector)
        else vector
        for name, vector in vectors.items()
    } or None


def _floats(vector: Any) -> list[float]:
    if not isinstance(vector, list | tuple | np.ndarray) or not all(isinstance(x, int | float) for x in vector[:1]):
        raise StoreError(f"an edge store is searched by a dense vector, not by {type(vector).__name__}")
    return list(map(float, vector))


def _convert(value: Any) -> Any:
    """Convert a filter, a condition or a value inside one."""
    if isinstance(value, models.Filter):
        clauses = {
            name: [_convert(one) for one in (part if isinstance(part, list) else [part])]
            for name in ("must", "should", "must_not")
            if (part := getattr(value, name)) is not None
        }
        return edge.Filter(**clauses, min_should=_convert(value.min_should))
    if isinstance(value, models.IsEmptyCondition):
        return edge.IsEmptyCondition(value.is_empty.key)
    if isinstance(value, models.IsNullCondition):
        return edge.IsNullCondition(value.is_null.key)
    if isinstance(value, models.NestedCondition):
        return edge.NestedCondition(value.nested.key, _convert(value.nested.filter))
    if isinstance(value, models.HasIdCondition):
        return edge.HasIdCondition(set(value.has_id))
    if isinstance(value, models.HasVectorCondition):
        return edge.HasVectorCondition(value.has_vector)
    if isinstance(value, models.MatchValue) and isinstance(value.value, bool):
        flag: Any = np.bool_(value.value)  # qdrant_edge 0.9.0 turns a Python bool into the integer 1
        return edge.MatchValue(flag)
    if isinstance(value, BaseModel):
        name = type(value).__name__
        constructor = getattr(edge, _NAMES.get(name, name), None)
        fields = [(key, _convert(part)) for key, part in value if part is not None]
        try:
            if name.startswith("Match"):  # one value each, under differing names
                return constructor(*(part for _, part in fields))  # type: ignore[misc]
            return constructor(**dict(fields))  # type: ignore[misc]
        except TypeError as error:
            raise StoreError(f"an edge store does not know the condition {name} ({error})") from error
    if isinstance(value, datetime | date):
        return value.isoformat() if isinstance(value, datetime) else f"{value.isoformat()}T00:00:00"
    return [_convert(part) for part in value] if isinstance(value, list) else value
