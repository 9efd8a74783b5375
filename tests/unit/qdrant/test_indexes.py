"""Payload indexes, and a server that refuses filters without them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from qdrant_client import QdrantClient

from gircse_rag.errors import InputError, StoreError
from gircse_rag.qdrant import Document, create_collection, ingest, open_client, search
from tests.qdrant_shim import Shim
from tests.stand_in import StandIn

DOCUMENTS = [Document(name, f"text of {name}", {"kind": name[0], "year": 2020}) for name in ("a1", "a2", "b1")]


@pytest.fixture
def strict() -> Iterator[Shim]:
    with Shim(strict=True) as shim:
        yield shim


def _ingest(client: QdrantClient, embedder: StandIn, documents: list[Document] = DOCUMENTS, **options: Any) -> Any:
    return ingest(documents, collection="docs", embedder=embedder, client=client, **options)


def _search(client: QdrantClient, embedder: StandIn, **options: Any) -> list[str]:
    hits = search("text of a1", collection="docs", embedder=embedder, client=client, **options)
    return sorted(str(hit.document) for hit in hits)


@pytest.mark.parametrize("mode", ["hybrid", "dense", "lexical"])
def test_ingest_sync_groups_and_filters_pass_on_a_strict_server(strict: Shim, embedder: StandIn, mode: Any) -> None:
    client = strict.client()
    _ingest(client, embedder, source="s", indexes={"kind": "keyword"})
    assert strict.indexes["docs"] == {
        "gircse.document": "keyword",
        "gircse.source": "keyword",
        "metadata.kind": "keyword",
    }
    assert _search(client, embedder, query_filter={"kind": "a"}, mode=mode) == ["a1", "a2"]
    assert _search(client, embedder, group_size=1, mode=mode) == ["a1", "a2", "b1"]
    report = _ingest(client, embedder, DOCUMENTS[:2], source="s", sync=True)
    assert report.removed == 1 and _search(client, embedder, mode=mode) == ["a1", "a2"]


def test_a_filter_without_an_index_says_how_to_get_one(strict: Shim, embedder: StandIn) -> None:
    client = strict.client()
    _ingest(client, embedder)
    with pytest.raises(StoreError, match=r"ingest once more with --index year=keyword, or another kind"):
        _search(client, embedder, query_filter={"year": 2020})
    _ingest(client, embedder, indexes={"year": "integer"})
    assert _search(client, embedder, query_filter={"year": 2020}) == ["a1", "a2", "b1"]
    assert _search(client, embedder, query_filter={"year": {"ne": [2021]}}) == ["a1", "a2", "b1"]


@pytest.mark.parametrize(("stored", "kind"), [("2020", "keyword"), (2020, "integer"), (2020, "float")])
@pytest.mark.parametrize("wanted", ["2020", 2020, 2020.0, ["2020", 7]])
def test_values_of_other_types_pass_on_a_strict_server(
    strict: Shim, embedder: StandIn, stored: Any, kind: str, wanted: Any
) -> None:
    client = strict.client()
    _ingest(client, embedder, [Document("a1", "text", {"year": stored})], indexes={"year": kind})
    assert _search(client, embedder, query_filter={"year": wanted}) == ["a1"]


def test_a_collection_without_indexes_gets_them_from_the_next_ingest(strict: Shim, embedder: StandIn) -> None:
    client = strict.client()
    _ingest(client, embedder)
    strict.indexes.clear()  # as an earlier version, or a crash after creating the collection, leaves it
    _ingest(client, embedder)
    assert {*strict.indexes["docs"]} == {"gircse.document", "gircse.source"}
    made = [path for method, path in strict.requests if path.endswith("/index")]
    _ingest(client, embedder)
    assert [path for method, path in strict.requests if path.endswith("/index")] == made  # and only once


def test_create_collection_makes_them_too(strict: Shim, embedder: StandIn) -> None:
    create_collection(strict.client(), "docs", embedder, payload_indexes={"metadata.kind": "keyword"})
    assert {*strict.indexes["docs"]} == {"gircse.document", "gircse.source", "metadata.kind"}


def test_an_edge_store_has_them(tmp_path: Path, embedder: StandIn) -> None:
    pytest.importorskip("qdrant_edge", reason="the edge extra is not installed")
    client = open_client(tmp_path / "store", engine="edge")
    for _ in range(2):
        _ingest(client, embedder, indexes={"year": "integer"})
    schema = client.get_collection("docs").payload_schema
    assert {field: index.data_type.value for field, index in schema.items()} == {
        "gircse.document": "keyword",
        "gircse.source": "keyword",
        "metadata.year": "integer",
    }
    assert _search(client, embedder, query_filter={"year": {"gte": 2020}}) == ["a1", "a2", "b1"]
    client.close()


@pytest.mark.parametrize(
    ("indexes", "message"),
    [({"kind": "word"}, "no index of kind 'word' for 'kind'; use keyword, integer"), ({"": "keyword"}, "the key ''")],
)
def test_invalid_indexes_are_refused(
    client: QdrantClient, embedder: StandIn, indexes: dict[str, str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        _ingest(client, embedder, indexes=indexes)
    assert not client.collection_exists("docs")
    _ingest(client, embedder, indexes={"kind": "keyword"})  # local mode has none and needs none
