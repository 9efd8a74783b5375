"""An empty result says why: a key or a value that does not exist, a score too high, an offset too large."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from qdrant_client import QdrantClient, models

from gircse_rag.qdrant import Document, explain_empty, ingest, open_client, search
from tests.stand_in import StandIn

DOCUMENTS = [
    Document("a", "cats purr", {"kind": "animal", "year": 1990, "tags": ["pet", "small"]}),
    Document("b", "dogs bark", {"kind": "animal", "year": 2001}),
    Document("c", "oaks grow", {"kind": "plant", "place": {"name": "wood"}}),
]


@pytest.fixture(params=["local", "edge"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == "edge":
        pytest.importorskip("qdrant_edge")
    client = open_client(tmp_path / "store", engine=request.param)
    embedder = StandIn()
    ingest(DOCUMENTS, collection="docs", embedder=embedder, client=client)
    yield {"collection": "docs", "embedder": embedder, "client": client}
    client.close()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            {"query_filter": {"sort": "animal"}},
            "no document has the key 'sort'; keys there: source, kind, year, tags, place",
        ),
        ({"query_filter": {"kind": "mineral"}}, "no document has kind = 'mineral'; values there: 'animal', 'plant'"),
        ({"query_filter": {"year": "1991"}}, "no document has year = '1991'; values there: 1990, 2001"),
        (
            {"query_filter": {"kind": {"gte": 3}}},
            "no document has kind = {'gte': 3}; values there: 'animal', 'plant' (strings, which no range of numbers "
            "finds; ingest them as numbers, from .jsonl or .parquet)",
        ),
        (
            {"query_filter": {"kind": None}},
            "no document has kind = None; values there: 'animal', 'plant'",
        ),
        (
            {"query_filter": {"sort": {"exists": True}}},
            "no document has the key 'sort'; keys there: source, kind, year, tags, place",
        ),
        ({"query_filter": {"year": {"gte": 2010}}}, "no document has year = {'gte': 2010}; values there: 1990, 2001"),
        ({"query_filter": {"place.name": "city"}}, "no document has place.name = 'city'; values there: 'wood'"),
        ({"query_filter": {"tags[]": "wild"}}, "no document has tags[] = 'wild'; values there: 'pet', 'small'"),
        (
            {"query_filter": {"kind": "plant", "year": 1990}},
            "each condition matches some documents, but none matches all 2 of them",
        ),
        (
            {"query_filter": models.Filter(must=[models.HasIdCondition(has_id=[7])])},
            "no chunk matches the filter",
        ),
        ({"offset": 3}, "the offset 3 skips every hit (3 chunks)"),
    ],
)
def test_the_reason_names_what_exists(store: Any, options: dict[str, Any], reason: str) -> None:
    assert search("cats", **store, **options) == []
    assert explain_empty("cats", **store, **options) == reason


def test_the_reason_names_the_best_score(store: Any) -> None:
    best = search("cats", **store, query_filter={"kind": "plant"}, mode="dense")[0].score
    assert search("cats", **store, query_filter={"kind": "plant"}, min_score=0.99) == []
    reason = explain_empty("cats", **store, query_filter={"kind": "plant"}, min_score=0.99)
    assert reason == f"1 chunk behind the filter: all score below 0.99; the best has {best:.4f}"
    reason = explain_empty("dogs bark loudly", **store, min_score=0.9999)
    assert reason is not None and reason.startswith("3 chunks: all score below 0.9999; the best has 0.")


def test_an_empty_collection_is_named_and_hits_need_no_reason() -> None:
    client, embedder = QdrantClient(":memory:"), StandIn()
    ingest([], collection="docs", embedder=embedder, client=client)
    arguments: dict[str, Any] = {"collection": "docs", "embedder": embedder, "client": client}
    assert explain_empty("cats", **arguments) == "collection 'docs' is empty; ingest documents first"
    ingest(DOCUMENTS, **arguments)
    assert explain_empty("cats", **arguments) is None


def test_a_lexical_search_says_that_no_word_is_known(store: Any) -> None:
    for question, query_filter in (("zebras gallop", None), ("oaks", {"kind": "animal"})):
        options = {**store, "query_filter": query_filter, "mode": "lexical"}
        assert search(question, **options) == []
        reason = explain_empty(question, **options)
        assert reason is not None and "none has a word of the question; ask with other words" in reason


def test_many_values_are_cut() -> None:
    client, embedder = QdrantClient(":memory:"), StandIn()
    arguments: dict[str, Any] = {"collection": "docs", "embedder": embedder, "client": client}
    ingest([Document(str(n), f"text {n}", {"number": n}) for n in range(9)], **arguments)
    reason = explain_empty("cats", **arguments, query_filter={"number": 9})
    assert reason is not None and reason.endswith(", ...") and reason.count(",") == 5
