"""Between the models of qdrant_client and those of qdrant_edge: nearly the same names, in two libraries.

What the engine does not have raises StoreError here; nothing is left out in silence.
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
"""Settings that one process with acknowledged writes meets by itself."""


def refuse(settings: Mapping[str, Any]) -> None:
    """Raise StoreError for a setting that is given and that the engine would not heed."""
    if asked := sorted(name for name, value in settings.items() if value is not None and name not in _HARMLESS):
        raise StoreError(f"an edge store does not know {', '.join(asked)}; a Qdrant server may")


def to_edge_filter(wanted: models.Filter | None, *, hidden: str) -> edge.Filter:
    """`wanted`, and never the point `hidden`.

    Raises:
        StoreError: it holds a condition that the edge engine has not.
    """
    hide = edge.HasIdCondition({hidden})
    return edge.Filter(must=[] if wanted is None else [_convert(wanted)], must_not=[hide])


def to_edge_query(query: object, using: str | None) -> Any:
    """A vector, or a nearest-neighbour query with or without MMR, as qdrant_edge takes it.

    Raises:
        StoreError: any other kind of query.
    """
    if isinstance(query, models.NearestQuery) and query.mmr is not None:
        # Theirs counts the other way round: 1 is similarity only.
        diversity = 0.5 if query.mmr.diversity is None else query.mmr.diversity
        return edge.Mmr(_floats(query.nearest), 1 - diversity, query.mmr.candidates_limit or 100, using)
    return edge.Query.Nearest(_floats(query.nearest if isinstance(query, models.NearestQuery) else query), using=using)


def to_edge_point(point: models.PointStruct) -> edge.Point:
    """A point with named dense vectors."""
    if not isinstance(point.vector, dict):
        raise StoreError(f"point {point.id}: an edge store takes named vectors")
    return edge.Point(point.id, {name: _floats(vector) for name, vector in point.vector.items()}, point.payload or {})


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
    """The engine's request for what `QdrantClient.query_points` is asked."""
    refuse(others)
    return edge.QueryRequest(
        limit=limit,
        offset=offset,
        query=to_edge_query(query, using),
        filter=None if query_filter is None else _convert(query_filter),
        score_threshold=score_threshold,
        with_payload=selection(with_payload),
        with_vector=with_vectors,
    )


def collection_info(about: dict[str, Any], info: edge.ShardInfo) -> models.CollectionInfo:
    """What `get_collection` returns. `about`: see `EdgeShard.about`."""
    vectors = {
        name: models.VectorParams(size=size, distance=models.Distance(distance))
        for name, (size, distance) in about["vectors"].items()
    }
    return models.CollectionInfo(
        status=models.CollectionStatus.GREEN,
        optimizer_status=models.OptimizersStatusOneOf.OK,
        points_count=info.points_count - 1,  # the reserved one
        indexed_vectors_count=info.indexed_vectors_count,
        segments_count=info.segments_count,
        payload_schema={},
        config=models.CollectionConfig(
            params=models.CollectionParams(vectors=vectors),
            hnsw_config=models.HnswConfig(m=16, ef_construct=100, full_scan_threshold=10_000),
            optimizer_config=models.OptimizersConfig(
                deleted_threshold=0.2, vacuum_min_vector_number=1000, default_segment_number=0, flush_interval_sec=0
            ),
            metadata=about["metadata"],
        ),
    )


def selection(with_payload: Any) -> Any:
    """What of the payload to return: True, False or a list of keys."""
    if isinstance(with_payload, models.PayloadSelectorInclude):
        return list(with_payload.include)
    if isinstance(with_payload, models.PayloadSelectorExclude):
        return edge.PayloadSelector.Exclude(list(with_payload.exclude))
    return with_payload if isinstance(with_payload, bool) else list(with_payload)


def from_edge_record(point: edge.Record) -> models.Record:
    """A stored point."""
    return models.Record(id=plain_id(point.id), payload=point.payload, vector=_dense(point.vector))


def from_edge_hit(point: edge.ScoredPoint) -> models.ScoredPoint:
    """A point that a query found."""
    return models.ScoredPoint(
        id=plain_id(point.id),
        version=point.version,
        score=point.score,
        payload=point.payload,
        vector=_dense(point.vector),
    )


def _dense(vector: Any) -> Any:
    return vector or None  # of a point without vectors: {}


def plain_id(value: Any) -> int | str:
    """A point's id as qdrant_client has it: the engine gives UUID objects."""
    return value if isinstance(value, int) else str(value)


def _floats(vector: Any) -> list[float]:
    if not isinstance(vector, list | tuple | np.ndarray) or not all(isinstance(x, int | float) for x in vector[:1]):
        raise StoreError(f"an edge store is asked by a dense vector, not by {type(vector).__name__}")
    return list(map(float, vector))


def _convert(value: Any) -> Any:
    if isinstance(value, models.Filter):
        several = {
            name: [_convert(one) for one in (part if isinstance(part, list) else [part])]
            for name in ("must", "should", "must_not")
            if (part := getattr(value, name)) is not None
        }
        return edge.Filter(**several, min_should=_convert(value.min_should))
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
        flag: Any = np.bool_(value.value)  # a Python bool arrives there as the integer 1 (0.9.0)
        return edge.MatchValue(flag)
    if isinstance(value, BaseModel):
        name = type(value).__name__
        make = getattr(edge, _NAMES.get(name, name), None)
        fields = [(key, _convert(part)) for key, part in value if part is not None]
        try:
            if name.startswith("Match"):  # one value each, under names that differ
                return make(*(part for _, part in fields))  # type: ignore[misc]
            return make(**dict(fields))  # type: ignore[misc]
        except TypeError as error:
            raise StoreError(f"an edge store does not know the condition {name} ({error})") from error
    if isinstance(value, datetime | date):
        return value.isoformat() if isinstance(value, datetime) else f"{value.isoformat()}T00:00:00"
    return [_convert(part) for part in value] if isinstance(value, list) else value
