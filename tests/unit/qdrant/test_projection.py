from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from qdrant_client import QdrantClient

from gircse_rag.qdrant import Document, create_collection, ingest, open_client
from gircse_rag.qdrant.projection import find_plane, project
from tests.stand_in import StandIn

DOCUMENTS = [Document(f"{number}", f"text {number}", {"kind": f"kind {number % 3}"}) for number in range(40)]


@pytest.fixture
def client(tmp_path: Path) -> Iterator[QdrantClient]:
    with closing(open_client(tmp_path / "store")) as opened:
        yield opened


def test_the_plane_is_that_of_the_singular_value_decomposition() -> None:
    generator = np.random.default_rng(0)
    rows = (generator.standard_normal((500, 64)) * np.geomspace(10, 0.01, 64) + 3).astype(np.float32)
    mean, components, explained = find_plane(rows)
    centred = rows - rows.mean(axis=0)
    _, spread, directions = np.linalg.svd(centred, full_matrices=False)
    assert np.allclose(mean, rows.mean(axis=0))
    assert np.allclose(np.abs((components * directions[:2]).sum(axis=1)), 1, atol=1e-3)
    assert np.allclose(explained, (spread**2 / (spread**2).sum())[:2], atol=1e-3)
    assert np.allclose(components @ components.T, np.eye(2), atol=1e-5)
    again = find_plane(rows)
    assert all(np.array_equal(one, other) for one, other in zip((mean, components, explained), again, strict=True))


@pytest.mark.parametrize(
    ("rows", "directions"),
    [
        (np.zeros((0, 5)), 0),
        (np.ones((1, 5)), 0),
        (np.ones((9, 5)) / 3, 0),
        (np.outer(np.arange(9), np.ones(5)), 1),
        (np.array([[0.0], [1.0]]), 1),
    ],
)
def test_too_few_directions_are_zero(rows: np.ndarray, directions: int) -> None:
    _, components, explained = find_plane(rows.astype(np.float32))
    assert np.isfinite(components).all() and components.shape == (2, rows.shape[1])
    assert np.allclose((components**2).sum(axis=1), [1] * directions + [0] * (2 - directions), atol=1e-5)
    assert np.allclose(explained, [1] * directions + [0] * (2 - directions), atol=1e-5)


def test_points_have_their_documents_and_coordinates(client: QdrantClient) -> None:
    embedder = StandIn(dimension=16)
    ingest(DOCUMENTS, collection="notes", embedder=embedder, client=client)
    found = project(client, "notes", 16)
    assert {(point.document, point.text, point.metadata["kind"]) for point in found.points} == {
        (document.id, document.text, document.metadata["kind"]) for document in DOCUMENTS
    }
    rows = embedder.embed_documents([point.text for point in found.points])
    assert np.allclose(found.coordinates, (rows - found.mean) @ found.components.T, atol=1e-5)
    assert found.coordinates.shape == (40, 2) and found.coordinates.dtype == np.float32


def test_a_large_collection_is_sampled(client: QdrantClient) -> None:
    ingest(DOCUMENTS, collection="notes", embedder=StandIn(dimension=16), client=client)
    found = project(client, "notes", 16, max_points=10)
    assert len(found.points) == len(found.coordinates) == 10


def test_an_empty_collection(client: QdrantClient) -> None:
    create_collection(client, "notes", StandIn(dimension=16))
    found = project(client, "notes", 16)
    assert found.points == [] and found.coordinates.shape == (0, 2) and found.components.shape == (2, 16)
