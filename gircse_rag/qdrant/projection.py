"""Project a collection onto a plane: the map of the playground.

    vectors (n, d) - mean (d,) ─► the two directions of the largest variance (2, d) ─► coordinates (n, 2)

A question's z_k is drawn at `components @ (z_k - mean)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qdrant_client import QdrantClient

from gircse_rag.qdrant.foreign import read_payload
from gircse_rag.qdrant.points import read_pages, read_record
from gircse_rag.qdrant.retry import Retry
from gircse_rag.qdrant.schema import VECTOR
from gircse_rag.qdrant.stores import store_errors, store_name

MAX_POINTS = 5_000
_POINTS_PER_PAGE = 256
_RETRY_SECONDS = 10.0
_EXTRA_DIRECTIONS, _POWER_ITERATIONS = 8, 8
"""Randomised SVD (Halko et al., 2011): the plane is exact to three digits where its variances stand out."""


@dataclass(frozen=True)
class MapPoint:
    """A point of the map: id of the point in Qdrant, id of its document (None for other writers), text, metadata."""

    id: str
    document: str | None
    text: str
    metadata: dict[str, Any]


@dataclass(frozen=True)
class Projection:
    """A plane through the points of a collection.

    Attributes:
        points: n points.
        coordinates: (n, 2) float32.
        mean: (d,) float32.
        components: (2, d) float32, orthonormal rows; rows are 0 where the points have no further direction.
        explained: (2,) float32, share of the variance along each row.
    """

    points: list[MapPoint]
    coordinates: NDArray[np.float32]
    mean: NDArray[np.float32]
    components: NDArray[np.float32]
    explained: NDArray[np.float32]


def project(client: QdrantClient, collection: str, dimension: int, max_points: int = MAX_POINTS) -> Projection:
    """Project the first `max_points` points onto their principal plane.

    Stores return points in the order of their ids. Ids of `ingest` are hashes, so these points are a random sample.

    Args:
        dimension: d, the length of the vectors.

    Raises:
        StoreError: the store fails, or the collection is gone.
    """
    ask = Retry(store_name(client), _RETRY_SECONDS)
    points: list[MapPoint] = []
    vectors: list[Any] = []
    with store_errors(client):
        for page in read_pages(ask, client, collection, _POINTS_PER_PAGE, with_payload=True, with_vectors=[VECTOR]):
            for point in page:
                vector = point.vector.get(VECTOR) if isinstance(point.vector, dict) else None
                if vector is None:
                    continue
                _, text, metadata = read_payload(point.id, point.payload)
                record = read_record(point.payload)
                document = None if record is None else record.document
                points.append(MapPoint(str(point.id), document, text, metadata))
                vectors.append(vector)
            if len(points) >= max_points:
                break
    rows = np.asarray(vectors[:max_points], dtype=np.float32).reshape(-1, dimension)
    mean, components, explained = find_plane(rows)
    coordinates = ((rows - mean) @ components.T).astype(np.float32)
    return Projection(points[:max_points], coordinates, mean, components, explained)


def find_plane(
    rows: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """The principal plane of `rows` (n, d): mean (d,), components (2, d), shares of the variance (2,).

    Deterministic; the largest entry of each component is positive.
    """
    dimension = rows.shape[1]
    components = np.zeros((2, dimension), dtype=np.float32)
    explained = np.zeros(2, dtype=np.float32)
    if not len(rows):
        return np.zeros(dimension, dtype=np.float32), components, explained
    mean = rows.mean(axis=0)
    centred = rows - mean
    total = float(np.square(centred).sum())
    if total <= 1e-9 * len(rows):  # all rows are equal, up to rounding
        return mean, components, explained
    size = min(2 + _EXTRA_DIRECTIONS, dimension)
    basis = np.random.default_rng(0).standard_normal((dimension, size)).astype(np.float32)
    for _ in range(_POWER_ITERATIONS):
        basis = np.linalg.qr(centred.T @ (centred @ basis))[0]
    _, spread, directions = np.linalg.svd(centred @ basis, full_matrices=False)
    for number in range(min(2, len(spread))):
        if spread[number] <= 1e-4 * spread[0]:
            break
        component = basis @ directions[number]
        components[number] = component * np.sign(component[np.abs(component).argmax()])
        explained[number] = spread[number] ** 2 / total
    return mean, components, explained
