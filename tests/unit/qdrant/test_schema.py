from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, Literal
from unittest.mock import Mock

import grpc
import httpx
import pytest
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import UnexpectedResponse

from gircse_rag.errors import GircseWarning, InputError, SpecMismatchError, StoreError
from gircse_rag.qdrant import Document, IngestReport, create_collection, ingest, open_client, search
from gircse_rag.spec import EmbeddingSpec
from tests.qdrant_shim import Shim
from tests.stand_in import StandIn

DOCUMENTS = [Document("a", "one")]
Use = Callable[[QdrantClient, StandIn], None]


def _ingest(client: QdrantClient, embedder: StandIn, collection: str = "docs") -> None:
    ingest(DOCUMENTS, collection=collection, embedder=embedder, client=client)


def _search(client: QdrantClient, embedder: StandIn, collection: str = "docs") -> None:
    search("one", collection=collection, embedder=embedder, client=client)


def test_the_collection_stores_the_spec_that_created_it(tmp_path: Path, embedder: StandIn) -> None:
    client = open_client(tmp_path / "store")
    _ingest(client, embedder)
    client.close()
    client = open_client(tmp_path / "store", create=False)
    config = client.get_collection("docs").config
    assert config.metadata is not None
    assert config.metadata["gircse"]["fingerprint"] == embedder.fingerprint
    assert EmbeddingSpec.from_dict(config.metadata["gircse"]["spec"]) == embedder.spec
    assert isinstance(config.params.vectors, dict)
    assert (config.params.vectors["gircse"].size, config.params.vectors["gircse"].distance) == (16, "Cosine")
    client.close()


@pytest.mark.parametrize("use", [_ingest, _search])
@pytest.mark.parametrize(
    "other", [{"document_steps": 3}, {"base_hash": "tuned"}, {"temperature": 0.5}, {"dimension": 8}, {"max_length": 32}]
)
def test_another_spec_is_refused_and_both_sides_are_named(
    client: QdrantClient, embedder: StandIn, use: Use, other: dict[str, Any]
) -> None:
    _ingest(client, embedder)
    stranger = StandIn(**other)
    ((name, value),) = other.items()
    with pytest.raises(SpecMismatchError) as caught:
        use(client, stranger)
    message = str(caught.value)
    assert stranger.fingerprint[:12] in message and embedder.fingerprint[:12] in message
    assert f"{name}: this embedder {value!r}, collection 'docs' {getattr(embedder.spec, name)!r}" in message
    assert "new collection" in message
    assert stranger.embedded == [] and client.count("docs").count == 1


@pytest.mark.parametrize("use", [_ingest, _search])
def test_another_dtype_only_warns(client: QdrantClient, embedder: StandIn, use: Use) -> None:
    _ingest(client, embedder)
    with pytest.warns(GircseWarning, match=r"bfloat16.*float32"):
        use(client, StandIn(dtype="bfloat16"))


@pytest.mark.parametrize("use", [_ingest, _search])
def test_a_collection_of_another_tool_is_refused(client: QdrantClient, embedder: StandIn, use: Use) -> None:
    client.create_collection("docs", models.VectorParams(size=16, distance=models.Distance.COSINE))
    with pytest.raises(StoreError, match=r"not made by gircse.*another collection"):
        use(client, embedder)
    assert client.count("docs").count == 0


@pytest.mark.parametrize(
    "vectors",
    [
        {"gircse": models.VectorParams(size=8, distance=models.Distance.COSINE)},
        {"gircse": models.VectorParams(size=16, distance=models.Distance.DOT)},
        {"other": models.VectorParams(size=16, distance=models.Distance.COSINE)},
        models.VectorParams(size=16, distance=models.Distance.COSINE),
    ],
)
def test_mismatched_vectors_under_our_spec_are_refused(client: QdrantClient, embedder: StandIn, vectors: Any) -> None:
    note = {"gircse": {"fingerprint": embedder.fingerprint, "spec": embedder.spec.to_dict()}}
    client.create_collection("docs", vectors, metadata=note)
    with pytest.raises(StoreError, match="this embedder needs 'gircse': 16 Cosine"):
        _ingest(client, embedder)


def test_a_spec_that_cannot_be_read_is_refused(client: QdrantClient, embedder: StandIn) -> None:
    _ingest(client, embedder)
    client.update_collection("docs", metadata={"gircse": {"spec": {"from_the_future": 1}}})
    with pytest.raises(StoreError, match="from_the_future"):
        _search(client, embedder)


def test_a_fingerprint_of_another_version_is_refused(client: QdrantClient, embedder: StandIn) -> None:
    _ingest(client, embedder)
    client.update_collection("docs", metadata={"gircse": {"fingerprint": "f" * 32, "spec": embedder.spec.to_dict()}})
    with pytest.raises(SpecMismatchError, match=f"{'f' * 32}.*{embedder.fingerprint}"):
        _search(client, embedder)


def test_a_missing_collection_is_reported_with_the_existing_ones(client: QdrantClient, embedder: StandIn) -> None:
    with pytest.raises(StoreError, match=r"no collection 'docs' \(there is: none\)"):
        _search(client, embedder)
    _ingest(client, embedder, "b")
    _ingest(client, embedder, "a")
    with pytest.raises(StoreError, match=r"no collection 'docs' \(there is: a, b\); ingest documents first"):
        _search(client, embedder)


@pytest.mark.parametrize(
    "answer",
    [
        UnexpectedResponse(409, "Conflict", b"exists", httpx.Headers()),
        grpc.RpcError(),
        StoreError("collection 'docs' already exists"),
        ValueError("Collection docs already exists"),
    ],
)
def test_a_collection_created_meanwhile_is_checked_and_used(
    client: QdrantClient, embedder: StandIn, monkeypatch: pytest.MonkeyPatch, answer: Exception
) -> None:
    create = client.create_collection
    maker: StandIn | None = embedder

    def too_late(name: str, vectors_config: dict[str, models.VectorParams], **_: object) -> None:
        if maker is not None:
            note = {"fingerprint": maker.fingerprint, "spec": maker.spec.to_dict()}
            create(name, vectors_config, metadata={"gircse": note})
        raise answer

    monkeypatch.setattr(client, "create_collection", too_late)
    _ingest(client, embedder)
    assert client.count("docs").count == 1
    client.delete_collection("docs")
    maker = StandIn(temperature=0.5)
    with pytest.raises(SpecMismatchError, match="temperature"):
        _ingest(client, embedder)
    client.delete_collection("docs")
    maker = None
    with pytest.raises((StoreError, ValueError), match=r"HTTP 409|refuses|already exists"):
        _ingest(client, embedder)


@pytest.mark.parametrize("engine", ["local", "edge"])
def test_two_ingests_that_create_one_collection_lose_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: Literal["local", "edge"]
) -> None:
    if engine == "edge":
        pytest.importorskip("qdrant_edge", reason="the edge extra is not installed")
    client = open_client(tmp_path / "store", engine=engine)
    exists, both, thread = client.collection_exists, threading.Barrier(2, timeout=30), threading.local()

    def collection_exists(name: str) -> bool:
        answer = exists(name)
        if not hasattr(thread, "waited"):
            thread.waited = both.wait()  # until the other thread has also found no collection
        return answer

    def run(name: str) -> IngestReport:
        return ingest([Document(name, name)], collection="docs", embedder=StandIn(), client=client)

    monkeypatch.setattr(client, "collection_exists", collection_exists)
    with ThreadPoolExecutor(2) as threads:
        reports = list(threads.map(run, ["a", "b"]))
    assert [report.added for report in reports] == [1, 1] and client.count("docs").count == 2
    client.close()


@pytest.mark.parametrize("answer", [None, UnexpectedResponse(409, "Conflict", b"exists", httpx.Headers())])
def test_the_second_of_two_concurrent_creations_raises(
    client: QdrantClient, embedder: StandIn, monkeypatch: pytest.MonkeyPatch, answer: Exception | None
) -> None:
    exists, answers = client.collection_exists, iter([False])
    create_collection(client, "docs", embedder)
    monkeypatch.setattr(client, "collection_exists", lambda name: next(answers, exists(name)))
    if answer is not None:
        monkeypatch.setattr(client, "create_collection", Mock(side_effect=answer))
    with pytest.raises(StoreError, match="'docs' exists"):
        create_collection(client, "docs", embedder)


@pytest.mark.parametrize("use", [_ingest, _search])
@pytest.mark.parametrize("name", ["", "a/b", "..", 'a"b', "x" * 256, "é" * 200, "\ud800"])
def test_invalid_collection_names_are_refused(
    client: QdrantClient, embedder: StandIn, use: Callable[..., None], name: str
) -> None:
    with pytest.raises(InputError, match="a collection cannot be called"):
        use(client, embedder, name)
    assert client.get_collections().collections == []


@pytest.mark.slow
def test_a_store_open_in_another_process_is_reported(tmp_path: Path) -> None:
    store = tmp_path / "store"
    program = f"import qdrant_client as q\nclient = q.QdrantClient(path={str(store)!r})\nprint(flush=True)\ninput()"
    holder = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    try:
        with pytest.raises(StoreError, match=re.escape(str(store)) + " is already open"):
            open_client(store)
    finally:
        holder.communicate("\n", timeout=30)
    open_client(store).close()


def test_opening_a_missing_store_to_search_does_not_create_it(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no Qdrant store in"):
        open_client(tmp_path / "nowhere", create=False)
    assert not (tmp_path / "nowhere").exists()


def test_paths_that_are_not_stores_are_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "meta.json").write_text('{"collec')
    for name in ("file", "damaged"):
        with pytest.raises(StoreError, match=f"{name}.*(cannot be opened as a Qdrant store|is damaged)"):
            open_client(tmp_path / name)


def test_open_client_selects_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("QDRANT_URL", raising=False)
    open_client().close()
    assert (tmp_path / "qdrant" / "meta.json").exists()
    monkeypatch.setenv("QDRANT_URL", "http://localhost:1")
    assert open_client().init_options["url"] == "http://localhost:1"
    assert open_client(url="http://localhost:2").init_options["url"] == "http://localhost:2"
    open_client(tmp_path / "by path").close()
    assert (tmp_path / "by path" / "meta.json").exists()
    with pytest.raises(InputError, match="two stores"):
        open_client("x", "http://localhost:2")
    with pytest.raises(InputError, match="no URL"):
        open_client(url="not a url://")


@pytest.mark.parametrize("use", [_ingest, _search])
def test_a_server_that_is_down_is_reported(embedder: StandIn, use: Use) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: the port is reserved and refuses connections
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(StoreError, match=re.escape(url) + ".*does not answer.*run again"):
            use(open_client(url=url), embedder)
    assert embedder.embedded == []


class _FixedReply(BaseHTTPRequestHandler):
    status, body = 200, b""

    def _reply(self) -> None:
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    do_GET = do_PUT = do_POST = _reply  # noqa: N815

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (500, b"out of memory", r"HTTP 500 \(out of memory\)"),
        (503, b"", "HTTP 503"),
        (200, b"<html>a web site</html>", "not JSON"),
        (401, b"", "QDRANT_API_KEY"),
    ],
)
def test_a_bad_server_answer_is_reported(embedder: StandIn, status: int, body: bytes, message: str) -> None:
    handler = type("Handler", (_FixedReply,), {"status": status, "body": body})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        client = open_client(url=f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(StoreError, match=message):
            _search(client, embedder)
        server.shutdown()


def test_a_damaged_embedded_store_is_reported(tmp_path: Path, embedder: StandIn) -> None:
    client = open_client(tmp_path / "store")
    _ingest(client, embedder)
    client.close()
    (database,) = (tmp_path / "store").rglob("*.sqlite")
    database.write_bytes(b"not a database at all" * 500)
    with pytest.raises(StoreError, match="store"):
        _search(open_client(tmp_path / "store"), embedder)


@pytest.mark.parametrize("make", [_ingest, lambda client, embedder: create_collection(client, "docs", embedder)])
def test_a_server_without_collection_metadata_is_noticed_before_anything_is_embedded(
    embedder: StandIn, make: Use
) -> None:
    with Shim() as shim:
        shim.version = "1.15.4"
        for _ in range(2):
            with pytest.raises(StoreError, match=rf"{shim.url}.*version is 1\.15\.4.*use a server of version 1\.16"):
                make(shim.client(), embedder)
        assert embedder.embedded == [] and not shim.client().collection_exists("docs")
        shim.version = "1.16.0"
        make(shim.client(), embedder)
