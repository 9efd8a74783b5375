from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from qdrant_client import QdrantClient

from gircse_rag import Embedder
from gircse_rag.qdrant import create_collection, ingest, open_client, search
from gircse_rag.qdrant.points import point_id
from gircse_rag.serving.service import Service
from gircse_rag.serving.settings import Settings
from tests.http_server import serve
from tests.stand_in import StandIn
from tests.unit.serving.conftest import MODEL

pytestmark = pytest.mark.slow  # every test starts a server

DOCUMENTS = [
    {"id": "cats", "text": "a cat purrs", "metadata": {"kind": "animal", "year": 1999}},
    {"id": "dogs", "text": "a dog barks", "metadata": {"kind": "animal", "year": 2005}},
    {"id": "the way/of the world", "text": "the way of the world", "metadata": {"kind": "saying"}},
]


@pytest.fixture(params=["local", "edge"])
def client(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[QdrantClient]:
    opened = open_client(tmp_path / "store", engine=request.param)
    yield opened
    opened.close()


@pytest.fixture
def http(embedder: Embedder, client: QdrantClient) -> Iterator[httpx.Client]:
    service = Service(embedder, Settings(model=MODEL), client=client, collection="notes")
    with serve(service) as url, httpx.Client(base_url=url, timeout=60, trust_env=False) as http:
        yield http


@pytest.fixture(scope="module")
def shared(embedder: Embedder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A server whose store holds DOCUMENTS, for tests that change nothing."""
    with closing(open_client(tmp_path_factory.mktemp("shared"))) as client:
        service = Service(embedder, Settings(model=MODEL), client=client, collection="notes")
        with serve(service) as url, httpx.Client(base_url=url, timeout=60, trust_env=False) as http:
            assert add(http).status_code == 200
            yield http


def add(http: httpx.Client, documents: Any = DOCUMENTS, collection: str = "notes", **fields: Any) -> httpx.Response:
    return http.post(f"/v1/collections/{collection}/documents", json={"documents": documents, **fields})


def delete(http: httpx.Client, *ids: str, collection: str = "notes") -> httpx.Response:
    return http.delete(f"/v1/collections/{collection}/documents", params={"id": ids})


def test_ingest_search_and_delete(http: httpx.Client, client: QdrantClient, embedder: Embedder) -> None:
    first = add(http, source="tests").json()
    assert (first["added"], first["failed"]) == (3, 0)
    assert [result["status"] for result in first["documents"]] == ["stored"] * 3
    assert add(http, source="tests").json() | {"documents": []} == {
        "collection": "notes",
        "added": 0,
        "updated": 0,
        "unchanged": 3,
        "deleted": 0,
        "embedded": 0,
        "failed": 0,
        "documents": [],
    }
    asked: dict[str, Any] = {"instruction": "find texts", "limit": 2}
    answer = http.post("/v1/search", json={"question": "purring", **asked})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    hits = search("purring", collection="notes", embedder=embedder, client=client, **asked)
    assert [(hit["id"], hit["document"], hit["text"]) for hit in body["hits"]] == [
        (hit.id, hit.document, hit.text) for hit in hits
    ]
    assert [hit["score"] for hit in body["hits"]] == pytest.approx([hit.score for hit in hits], abs=1e-5)
    assert body["instruction"] == "find texts" and body["collection"] == "notes"
    gone = delete(http, "cats", "the way/of the world", "nobody").json()
    assert gone == {"collection": "notes", "deleted": ["cats", "the way/of the world"], "missing": ["nobody"]}
    left = http.post("/v1/search", json={"question": "purring"}).json()["hits"]
    assert [hit["document"] for hit in left] == ["dogs"]


@pytest.mark.parametrize(
    ("fields", "documents"),
    [
        ({"filter": {"kind": "saying"}}, {"the way/of the world"}),
        ({"filter": {"year": {"gte": 2000}}}, {"dogs"}),
        ({"filter": {"kind": ["animal", "saying"]}, "limit": 10}, {"cats", "dogs", "the way/of the world"}),
        ({"group": 1, "limit": 10}, {"cats", "dogs", "the way/of the world"}),
        ({"min_score": 1.0}, set()),
        ({"offset": 3}, set()),
        ({"question": "purrs", "mode": "lexical"}, {"cats"}),
        ({"mode": "dense", "limit": 10}, {"cats", "dogs", "the way/of the world"}),
    ],
)
def test_search_options(shared: httpx.Client, fields: dict[str, Any], documents: set[str]) -> None:
    answer = shared.post("/v1/search", json={"question": "purring", **fields})
    assert answer.status_code == 200, answer.text
    assert {hit["document"] for hit in answer.json()["hits"]} == documents


def test_one_bad_document_does_not_spoil_the_others(http: httpx.Client) -> None:
    bad: list[Any] = ["text", {"id": "a"}, {"id": "b", "text": "x", "txet": 1}, {"id": "c", "text": "nul\x00"}]
    bad.append({"id": "d", "text": "fine", "metadata": {"_chunk": [[]], "n": 2**70}})
    answer = add(http, [bad[0], DOCUMENTS[0], *bad[1:]])
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["added"], body["failed"]) == (1, 5)
    results = body["documents"]
    assert [result["status"] for result in results] == ["failed", "stored", *["failed"] * 4]
    assert [result["id"] for result in results] == [None, "cats", "a", "b", "c", "d"]
    assert results[2]["reason"] == "text: field required"
    assert "txet" in results[3]["reason"] and "NUL" in results[4]["reason"]


def test_long_documents_are_replaced_and_deleted_with_all_their_chunks(
    http: httpx.Client, client: QdrantClient
) -> None:
    long = {"id": "long", "text": "the way of the world. " * 400}
    assert add(http, [long]).json()["embedded"] > 2
    assert add(http, [{"id": "long", "text": "short now"}]).json()["deleted"] > 1
    assert add(http, [long]).json()["updated"] == 1
    assert delete(http, "long").json()["deleted"] == ["long"]
    assert client.get_collection("notes").points_count == 0


def test_collections_are_listed_and_made(http: httpx.Client, client: QdrantClient) -> None:
    assert http.get("/v1/collections").json() == {"default": "notes", "collections": []}
    add(http)
    add(http, DOCUMENTS[:1], collection="other")
    create_collection(client, "foreign", StandIn(dimension=32))
    assert http.get("/v1/collections").json()["collections"] == [
        {"name": "foreign", "points": 0, "compatible": False},
        {"name": "notes", "points": 3, "compatible": True},
        {"name": "other", "points": 1, "compatible": True},
    ]
    answer = http.post("/v1/search", json={"question": "purring", "collection": "other"})
    assert [hit["id"] for hit in answer.json()["hits"]] == [point_id("cats", 0)]


def test_a_collection_of_another_model_is_refused(http: httpx.Client, client: QdrantClient) -> None:
    ingest([], collection="notes", embedder=StandIn(dimension=32), client=client)
    for answer in (add(http), http.post("/v1/search", json={"question": "purring"})):
        assert answer.status_code == 409
        assert "embed into different vector spaces" in answer.json()["error"]["message"]
    assert http.post("/v1/embeddings", json={"input": "a text"}).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "message"),
    [
        ("POST", "/v1/search", {"question": "a", "collection": "none"}, 404, "no collection 'none' (there is: notes)"),
        ("DELETE", "/v1/collections/none/documents?id=a", None, 404, "no collection 'none' (there is: notes)"),
        ("DELETE", "/v1/collections/notes/documents", None, 400, "'query.id' is missing"),
        ("POST", "/v1/search", {"question": ""}, 400, "is empty or white space"),
        ("POST", "/v1/search", {"question": "a\x00"}, 400, "control character"),
        ("POST", "/v1/search", {"question": "word " * 600}, 400, "the question"),
        ("POST", "/v1/search", {"question": "a", "limit": 10**9}, 400, "send at most 1000"),
        ("POST", "/v1/search", {"question": "a", "limit": 0}, 400, "limit: "),
        ("POST", "/v1/search", {"question": "a", "steps": 10**9}, 400, "steps must be an integer"),
        ("POST", "/v1/search", {"question": "a", "steps": [1]}, 400, "steps must be an integer"),
        ("POST", "/v1/search", {"question": "a", "filter": {"year": {"about": 3}}}, 400, "is no range"),
        ("POST", "/v1/search", {"question": "a", "filter": {"": 3}}, 400, "a filter has the key ''"),
        ("POST", "/v1/search", {"question": "a", "group": 1, "mmr": 0.5}, 400, "group_size cannot be combined"),
        ("POST", "/v1/search", {"question": "a", "mode": "psychic"}, 400, "mode: input should be 'hybrid', 'dense' or"),
        ("POST", "/v1/search", {"question": "a", "mode": "lexical", "mmr": 0.5}, 400, "mmr compares embeddings"),
        ("POST", "/v1/search", {"question": "a", "colection": "notes"}, 400, "there is no field 'colection'"),
        ("POST", "/v1/search", {}, 400, "the field 'question' is missing"),
        ("POST", "/v1/collections/notes/documents", {"documents": []}, 400, "there are no documents"),
        ("POST", "/v1/collections/notes/documents", {"documents": ["a"] * 3000}, 400, "send at most 2048"),
        ("POST", "/v1/collections/" + "n" * 300 + "/documents", {"documents": ["a"]}, 400, "nnn"),
    ],
)
def test_bad_input(shared: httpx.Client, method: str, path: str, body: Any, status: int, message: str) -> None:
    answer = shared.request(method, path, json=body)
    assert answer.status_code == status, answer.text
    assert message in answer.json()["error"]["message"]


def test_a_store_that_fails_is_an_error_of_its_request(
    http: httpx.Client, client: QdrantClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gircse_rag.errors import StoreError

    add(http)
    with monkeypatch.context() as patch:
        patch.setattr(
            "gircse_rag.serving.collections.search", lambda *_, **__: (_ for _ in ()).throw(StoreError("down"))
        )
        answer = http.post("/v1/search", json={"question": "a"})
    assert answer.status_code == 503 and answer.json()["error"]["code"] == "store_error"
    assert http.post("/v1/search", json={"question": "a"}).status_code == 200
