"""Behaviour that all stores share, and the requests that a server receives.

The shared tests run on local mode, on an edge store, on REST calls answered by local mode (`tests.qdrant_shim`),
and on the server in QDRANT_URL, if it is set.
"""

from __future__ import annotations

import copy
import inspect
import json
import os
import threading
import uuid
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qdrant_client import QdrantClient, models
from qdrant_client.local.local_collection import LocalCollection
from qdrant_client.local.qdrant_local import QdrantLocal

from gircse_rag.errors import GircseWarning, InputError, StoreError
from gircse_rag.lexical import Bm25Encoder
from gircse_rag.qdrant import Document, create_collection, ingest, migrate, open_client, search, search_batch, stores
from tests.qdrant_shim import Shim
from tests.stand_in import StandIn

DOCUMENTS = [
    Document("cats", "cats purr and sleep all day\n\ncats hunt mice at night, they say", {"legs": 4, "wild": False}),
    Document("dogs", "dogs bark and run all day\n\ndogs sleep at night, they say", {"legs": 4, "wild": False}),
    Document("birds", "birds sing at dawn\n\nbirds fly south for the winter months", {"legs": 2, "wild": True}),
]


@pytest.fixture(params=["local", "edge", "rest", "server"])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[QdrantClient]:
    if request.param == "rest":
        with Shim() as shim:
            yield shim.client()
        return
    if request.param == "server":
        if not os.environ.get("QDRANT_URL"):
            pytest.skip("QDRANT_URL is not set")
        client = open_client()
    else:
        if request.param == "edge":
            pytest.importorskip("qdrant_edge", reason="the edge extra is not installed")
        client = open_client(tmp_path / "store", engine=request.param)
    yield client
    client.close()


@pytest.fixture
def name(client: QdrantClient) -> Iterator[str]:
    """A unique collection name; its collections are deleted afterwards, because the server may be shared."""
    name = f"gircse-test-{uuid.uuid4().hex}"
    yield name
    for suffix in ("", "-new"):
        client.delete_collection(name + suffix)


def _ingest(client: QdrantClient, name: str, *documents: Document, embedder: StandIn | None = None) -> Any:
    return ingest(documents, collection=name, embedder=embedder or StandIn(max_length=40), client=client)


def _search(client: QdrantClient, name: str, question: str, **options: Any) -> list[str | None]:
    embedder = StandIn(max_length=40)
    return [h.document for h in search(question, collection=name, embedder=embedder, client=client, **options)]


def test_documents_are_added_once_changed_and_shortened(client: QdrantClient, name: str) -> None:
    report = _ingest(client, name, *DOCUMENTS)
    assert (report.added, report.embedded, client.count(name).count) == (3, 6, 6)
    again = StandIn(max_length=40)
    assert _ingest(client, name, *DOCUMENTS, embedder=again).unchanged == 3 and again.embedded == []
    report = _ingest(client, name, Document("cats", "cats purr and sleep all day"))
    assert (report.updated, report.deleted, client.count(name).count) == (1, 1, 5)


def test_vectors_and_payloads_round_trip(client: QdrantClient, name: str) -> None:
    document = Document("one", "a text", {"deep": [{"a": 1.5, "b": None}, "ü", 2**40, True], "empty": {}})
    _ingest(client, name, document)
    ((record,), offset) = client.scroll(name, with_vectors=True)
    assert offset is None and isinstance(record.vector, dict) and record.payload is not None
    np.testing.assert_allclose(np.asarray(record.vector["gircse"]), StandIn().vector("a text"), rtol=0, atol=1e-7)
    stored = {key: record.payload["metadata"][key] for key in document.metadata}
    assert stored == document.metadata


def test_searches_filter_group_diversify_and_page(client: QdrantClient, name: str) -> None:
    _ingest(client, name, *DOCUMENTS)
    assert _search(client, name, "birds sing at dawn", limit=1) == ["birds"]
    assert set(_search(client, name, "all day", query_filter={"legs": 4})) == {"cats", "dogs"}
    assert set(_search(client, name, "all day", query_filter={"wild": True})) == {"birds"}
    everything = _search(client, name, "dogs bark", limit=6)
    assert _search(client, name, "dogs bark", limit=2, offset=2) == everything[2:4]
    grouped = _search(client, name, "dogs bark", limit=2, group_size=1)
    assert grouped == list(dict.fromkeys(everything))[:2]
    assert len(_search(client, name, "dogs bark", limit=3, mmr=0.8)) == 3
    assert _search(client, name, "birds sing at dawn", min_score=0.99) == ["birds"]
    embedder = StandIn(max_length=40)
    questions = ["birds sing", "cats purr"]
    batch = search_batch(questions, collection=name, embedder=embedder, client=client, limit=1)
    assert [hits[0].document for hits in batch] == ["birds", "cats"]


def test_a_migration_moves_an_alias(client: QdrantClient, name: str) -> None:
    _ingest(client, name, *DOCUMENTS)
    other = StandIn(dimension=24, max_length=40)
    alias = f"{name}-alias"
    report = migrate(name, f"{name}-new", embedder=other, client=client, alias=alias)
    assert (report.embedded, report.alias_moved) == (6, True)
    (hit,) = search("birds sing at dawn", collection=alias, embedder=other, client=client, limit=1)
    assert hit.document == "birds"


# Requests to a server


class _Recorder(BaseHTTPRequestHandler):
    """Accepts every request and records it."""

    protocol_version = "HTTP/1.1"
    requests: list[tuple[str, str, Any, dict[str, str]]]

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.requests.append((self.command, self.path, json.loads(body or b"null"), dict(self.headers)))
        exists = self.path.endswith("/exists")
        result: Any = {"exists": False} if exists else True
        if (self.command, self.path) == ("GET", "/collections/docs"):
            result = _describe_collection(self.requests)
        if "/index" in self.path or "/points" in self.path:
            result = {"operation_id": 1, "status": "completed"}
        data = json.dumps({"result": result, "status": "ok", "time": 0.0}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_PUT = do_POST = do_PATCH = _handle  # noqa: N815

    def log_message(self, *arguments: object) -> None:
        pass


def _describe_collection(requests: list[Any]) -> dict[str, Any]:
    """The description of a collection, with its metadata and only the fields that the client needs."""
    (metadata,) = [body["metadata"] for method, _, body, _ in requests if method == "PUT" and "metadata" in body]
    hnsw = {"m": 16, "ef_construct": 100, "full_scan_threshold": 10_000}
    optimizer = {"deleted_threshold": 0.2, "vacuum_min_vector_number": 1000, "default_segment_number": 0}
    optimizer["flush_interval_sec"] = 5
    config = {"params": {}, "hnsw_config": hnsw, "optimizer_config": optimizer, "metadata": metadata}
    return {"status": "green", "optimizer_status": "ok", "segments_count": 1, "payload_schema": {}, "config": config}


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[QdrantClient, list[Any]]]:
    monkeypatch.setenv("QDRANT_API_KEY", "s3cret")
    requests: list[Any] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Recorder,), {"requests": requests})) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        client = open_client(url=f"http://127.0.0.1:{server.server_port}")
        yield client, requests
        client.close()
        server.shutdown()


def test_the_settings_of_a_collection_reach_the_server(
    recorder: tuple[QdrantClient, list[Any]], embedder: StandIn
) -> None:
    client, requests = recorder
    create_collection(
        client,
        "docs",
        embedder,
        vector_params={"on_disk": True, "hnsw_config": models.HnswConfigDiff(m=32)},
        payload_indexes={
            "metadata.kind": models.PayloadSchemaType.KEYWORD,
            "metadata.year": models.IntegerIndexParams(type=models.IntegerIndexType.INTEGER, range=True, lookup=False),
        },
        shard_number=6,
        sharding_method=models.ShardingMethod.AUTO,
        replication_factor=3,
        write_consistency_factor=2,
        on_disk_payload=True,
        hnsw_config=models.HnswConfigDiff(ef_construct=200),
        optimizers_config=models.OptimizersConfigDiff(indexing_threshold=50_000),
        quantization_config=models.ScalarQuantization(
            scalar=models.ScalarQuantizationConfig(type=models.ScalarType.INT8, always_ram=True)
        ),
    )
    sent = {(method, path.partition("?")[0]): body for method, path, body, _ in requests if method == "PUT"}
    assert sent["PUT", "/collections/docs"] == {
        "vectors": {"gircse": {"size": 16, "distance": "Cosine", "on_disk": True, "hnsw_config": {"m": 32}}},
        "sparse_vectors": {"bm25": {"modifier": "idf"}},
        "metadata": {
            "gircse": {
                "fingerprint": embedder.fingerprint,
                "spec": embedder.spec.to_dict(),
                "lexical": Bm25Encoder("english").settings,
            }
        },
        "shard_number": 6,
        "sharding_method": "auto",
        "replication_factor": 3,
        "write_consistency_factor": 2,
        "on_disk_payload": True,
        "hnsw_config": {"ef_construct": 200},
        "optimizers_config": {"indexing_threshold": 50_000},
        "quantization_config": {"scalar": {"type": "int8", "always_ram": True}},
    }
    indexes = [body for method, path, body, _ in requests if path.startswith("/collections/docs/index")]
    assert indexes == [
        {"field_name": "gircse.document", "field_schema": "keyword"},
        {"field_name": "gircse.source", "field_schema": "keyword"},
        {"field_name": "metadata.kind", "field_schema": "keyword"},
        {"field_name": "metadata.year", "field_schema": {"type": "integer", "lookup": False, "range": True}},
    ]
    assert all("wait=true" in path for _, path, _, _ in requests if "/index" in path)
    assert all(headers.get("api-key") == "s3cret" for *_, headers in requests)


def test_every_write_sends_the_write_ordering(recorder: tuple[QdrantClient, list[Any]]) -> None:
    plain, requests = recorder
    ordered = open_client(url=plain.init_options["url"], write_ordering="strong")
    for client in (plain, ordered):
        client.upsert("docs", [models.PointStruct(id=1, vector={}, payload={})], wait=True)
        client.set_payload("docs", {"a": 1}, points=[1], wait=True)
        client.delete("docs", models.PointIdsList(points=[1]), wait=True)
    queries = [path.partition("?")[2] for _, path, _, _ in requests if "/points" in path]
    assert queries == ["wait=true"] * 3 + ["wait=true&ordering=strong"] * 3
    ordered.close()
    with pytest.raises(InputError, match="write_ordering"):
        open_client(url="http://localhost:6333", write_ordering="strict")  # type: ignore[arg-type]


def test_invalid_settings_are_refused(embedder: StandIn) -> None:
    client: Any = QdrantClient(":memory:")
    any_embedder: Any = embedder
    with pytest.raises(InputError, match=r"no option shards; it has .*shard_number"):
        create_collection(client, "docs", any_embedder, shards=3)
    with pytest.raises(InputError, match="vector_params"):
        create_collection(client, "docs", any_embedder, vector_params={"on_disc": True})
    for options in (
        {"shard_number": "many"},
        {"hnsw_config": {"mm": 1}},
        {"quantization_config": "int8", "timeout": 5},
    ):
        with pytest.raises(InputError, match=f"options .*{next(iter(options))}.* are not valid"):
            create_collection(client, "docs", any_embedder, **options)
    assert not client.collection_exists("docs")
    create_collection(client, "docs", any_embedder)
    with pytest.raises(StoreError, match="'docs' exists"):
        create_collection(client, "docs", any_embedder)
    assert _ingest(client, "docs", DOCUMENTS[0], embedder=StandIn()).added == 1


def test_an_edge_store_has_payload_indexes(tmp_path: Path, embedder: StandIn) -> None:
    pytest.importorskip("qdrant_edge", reason="the edge extra is not installed")
    client = open_client(tmp_path, engine="edge")
    create_collection(client, "docs", embedder, payload_indexes={"metadata.legs": models.PayloadSchemaType.INTEGER})
    ingest(DOCUMENTS, collection="docs", embedder=embedder, client=client)
    with client._store.shard("docs").engine() as engine:  # type: ignore[attr-defined]
        assert engine.info().payload_schema["metadata.legs"].points == 3
    hits = search("day", collection="docs", embedder=embedder, client=client, query_filter={"legs": 2})
    assert [hit.document for hit in hits] == ["birds"]
    with pytest.raises(StoreError, match="plain kind of payload index"):
        client.create_payload_index("docs", "a", models.TextIndexParams(type=models.TextIndexType.TEXT))
    client.close()


def test_an_edge_store_refuses_what_only_a_server_has(tmp_path: Path, embedder: StandIn) -> None:
    pytest.importorskip("qdrant_edge", reason="the edge extra is not installed")
    client = open_client(tmp_path, engine="edge")
    any_embedder: Any = embedder
    for options in ({"shard_number": 3}, {"vector_params": {"on_disk": True}}):
        with pytest.raises(StoreError, match=r"does not know (shard_number|on_disk); a Qdrant server may"):
            create_collection(client, "docs", any_embedder, **options)
        assert not client.collection_exists("docs")
    client.close()


def test_grpc_is_used_on_request_and_its_errors_become_store_errors(embedder: StandIn) -> None:
    client = open_client(url="http://127.0.0.1:1", prefer_grpc=True)
    assert client._client._prefer_grpc  # type: ignore[attr-defined]
    with pytest.raises(StoreError, match=r"http://127.0.0.1:1 .*run again"):
        search("text", collection="docs", embedder=embedder, client=client)


# Several threads

LOCAL: dict[str, Callable[[Path], QdrantClient]] = {
    "open_client": open_client,
    "a folder": lambda folder: QdrantClient(path=str(folder)),
    "memory": lambda _: QdrantClient(":memory:"),
}


@pytest.fixture(params=LOCAL)
def local(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[QdrantClient]:
    """A local-mode client, created by us or by the caller, after one `ingest`."""
    client = LOCAL[request.param](tmp_path / "store")
    _ingest(client, "docs", *DOCUMENTS)
    yield client
    client.close()


def test_local_mode_reads_nothing_while_it_writes(local: QdrantClient, monkeypatch: pytest.MonkeyPatch) -> None:
    write, read = LocalCollection.upsert, LocalCollection.query_points
    writing, has_read, events = threading.Event(), threading.Event(), []

    def watched_write(*args: Any, **options: Any) -> Any:
        writing.set()
        has_read.wait(0.3)  # long enough for a read that is not locked out
        answer = write(*args, **options)
        events.append("written")
        return answer

    def watched_read(*args: Any, **options: Any) -> Any:
        events.append("read")
        has_read.set()
        return read(*args, **options)

    monkeypatch.setattr(LocalCollection, "upsert", watched_write)
    monkeypatch.setattr(LocalCollection, "query_points", watched_read)
    new = models.PointStruct(id=7, vector={"gircse": StandIn().vector("something new").tolist()}, payload={})
    with ThreadPoolExecutor(2) as threads:
        written = threads.submit(local.upsert, "docs", [new])
        assert writing.wait(30)
        (found,) = threads.submit(_search, local, "docs", "something new", limit=1).result(30)
        written.result(30)
    assert events[0] == "written" and set(events[1:]) == {"read"}
    assert found is None  # the new point, which has no document


def test_every_method_of_local_mode_is_serialised(local: QdrantClient) -> None:
    for name, method in inspect.getmembers(QdrantLocal, inspect.isfunction):
        if not name.startswith("_"):
            assert getattr(type(local._client), name) is not method, name
    assert isinstance(local, QdrantClient) and isinstance(local._client, QdrantLocal)


def test_an_iterator_of_points_may_wait_for_another_threads_read(local: QdrantClient) -> None:
    def points() -> Iterator[models.PointStruct]:
        with ThreadPoolExecutor(1) as thread:
            before = thread.submit(local.count, "docs").result(30).count
        yield models.PointStruct(id=before, vector={"gircse": [1.0] * 16}, payload={})

    local.upload_points("docs", points())
    assert local.count("docs").count == 7 and local.retrieve("docs", [6])


def test_a_copy_of_an_in_memory_client_is_independent() -> None:
    client = QdrantClient(":memory:")
    _ingest(client, "docs", *DOCUMENTS)
    twin = copy.deepcopy(client)
    twin.delete_collection("docs")
    assert client.count("docs").count == 6 and not twin.collection_exists("docs")


# The engine of a folder


def test_a_folder_is_opened_by_its_own_engine(tmp_path: Path) -> None:
    pytest.importorskip("qdrant_edge", reason="the edge extra is not installed")
    for engine in ("local", "edge"):
        open_client(tmp_path / engine, engine=engine).close()
        again = open_client(tmp_path / engine, create=False)
        assert hasattr(again, "build_index") == (engine == "edge")
        again.close()
    with pytest.raises(InputError, match="engine 'edge', not 'local'"):
        open_client(tmp_path / "edge", engine="local")
    with pytest.raises(InputError, match="'local' or 'edge'"):
        open_client(tmp_path / "new", engine="fast")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="is a server"):
        open_client(url="http://localhost:6333", engine="edge")


def test_a_damaged_edge_store_is_reported(tmp_path: Path) -> None:
    pytest.importorskip("qdrant_edge", reason="the edge extra is not installed")
    (tmp_path / "edge.json").write_text("{")
    with pytest.raises(StoreError, match=r"edge\.json is damaged .*restore it"):
        open_client(tmp_path)


@pytest.mark.slow
def test_a_collection_too_large_for_its_store_warns_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("qdrant_edge", reason="the edge extra is not installed")
    monkeypatch.setattr(stores, "LOCAL_POINTS", 5)
    monkeypatch.setattr(stores, "UNINDEXED_POINTS", 5)
    for engine, advice in (("local", r'engine="edge".*server'), ("edge", r"build_index\('docs'\)")):
        client = open_client(tmp_path / engine, engine=engine)  # type: ignore[arg-type]
        _ingest(client, "docs", *DOCUMENTS[:2])
        _search(client, "docs", "not yet")
        _ingest(client, "docs", *DOCUMENTS)
        with pytest.warns(GircseWarning, match=f"collection 'docs' has 6 points, and .*{advice}"):
            _search(client, "docs", "now")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            _search(client, "docs", "and not again")
        client.close()
