"""To another model: whole, resumable after kills, and seen by nobody until it is done."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import UnexpectedResponse

from gircse_rag.errors import InputError, SpecMismatchError, StoreError
from gircse_rag.qdrant import Document, MigrationReport, ingest, migrate, open_client, search
from gircse_rag.qdrant.schema import ensure_collection
from tests.qdrant_shim import Shim
from tests.unit.qdrant.standin import POISON, StandIn

TEXTS = {f"doc {n}": f"text number {n} about subject {n % 7}" for n in range(50)}


def _old() -> StandIn:
    return StandIn()


def _new(**options: object) -> StandIn:
    return StandIn(dimension=24, base_hash="better", **options)  # type: ignore[arg-type]


def _fill(client: QdrantClient, collection: str = "old") -> None:
    documents = [Document(name, text, {"n": len(text), "deep": {"a": [1, None, 2.5]}}) for name, text in TEXTS.items()]
    ingest(documents, collection=collection, embedder=_old(), client=client)  # type: ignore[arg-type]


def _migrate(client: QdrantClient, embedder: StandIn, **options: object) -> MigrationReport:
    return migrate("old", "new", embedder=embedder, client=client, **options)  # type: ignore[arg-type]


def _points(client: QdrantClient, collection: str) -> dict[object, models.Record]:
    return {r.id: r for r in client.scroll(collection, limit=10_000, with_payload=True, with_vectors=True)[0]}


def _check(client: QdrantClient, embedder: StandIn) -> None:
    old, new = _points(client, "old"), _points(client, "new")
    assert old.keys() == new.keys() and len(new) >= len(TEXTS)
    for key, point in new.items():
        assert point.payload == old[key].payload and isinstance(point.vector, dict)
        np.testing.assert_allclose(point.vector["gircse"], embedder.vector(point.payload["page_content"]), atol=1e-6)


@pytest.fixture(params=["local", "edge"])
def client(request: pytest.FixtureRequest, tmp_path: Path):  # type: ignore[no-untyped-def]
    if request.param == "edge":
        pytest.importorskip("qdrant_edge", reason="the edge extra is not installed")
    made = open_client(tmp_path / "store", engine=request.param)
    yield made
    made.close()


def test_the_same_points_get_new_vectors_and_the_alias_moves(client: QdrantClient) -> None:
    _fill(client)
    first = models.CreateAlias(collection_name="old", alias_name="docs")
    client.update_collection_aliases([models.CreateAliasOperation(create_alias=first)])
    embedder, told = _new(), []
    report = _migrate(client, embedder, alias="docs", batch_size=16, progress=lambda *at: told.append(at))
    assert (report.points, report.embedded, report.unchanged, report.extra) == (50, 50, 0, 0)
    assert report.alias_moved and not report.failed and report.prompt_tokens > 0
    assert told[:4] == [(16, 50), (32, 50), (48, 50), (50, 50)]
    assert len(embedder.embedded) == 50
    _check(client, embedder)
    hits = search(TEXTS["doc 3"], collection="docs", embedder=embedder, client=client, limit=1)  # type: ignore[arg-type]
    assert hits[0].document == "doc 3"
    with pytest.raises(SpecMismatchError):
        search("text", collection="docs", embedder=_old(), client=client)  # type: ignore[arg-type]
    assert client.count("old").count == 50  # and it answers as before
    assert search("text", collection="old", embedder=_old(), client=client)  # type: ignore[arg-type]


def test_again_embeds_nothing_and_what_is_new_is_found(client: QdrantClient) -> None:
    _fill(client)
    _migrate(client, _new())
    again = _new()
    assert _migrate(client, again).unchanged == 50 and again.embedded == []
    changed = [Document("doc 3", "another text"), Document("more", "one more")]
    ingest(changed, collection="old", embedder=_old(), client=client)  # type: ignore[arg-type]
    report = _migrate(client, again)
    assert sorted(again.embedded) == ["another text", "one more"] and (report.embedded, report.unchanged) == (2, 49)
    _check(client, again)


def test_an_ingest_after_it_embeds_nothing(client: QdrantClient) -> None:
    _fill(client)
    _migrate(client, _new())
    documents = [Document(name, text, {"n": len(text), "deep": {"a": [1, None, 2.5]}}) for name, text in TEXTS.items()]
    embedder = _new()
    report = ingest(documents, collection="new", embedder=embedder, client=client)  # type: ignore[arg-type]
    assert embedder.embedded == [] and not report.failed


def test_points_of_others_come_along(client: QdrantClient) -> None:
    _fill(client)
    vector = {"gircse": _old().vector("x").tolist()}
    client.upsert("old", [models.PointStruct(id=7, vector=vector, payload={"page_content": "by hand", "k": [1]})])
    embedder = _new()
    assert _migrate(client, embedder).points == 51
    _check(client, embedder)


def test_what_cannot_be_embedded_is_named_and_the_alias_stays(client: QdrantClient) -> None:
    _fill(client)
    vector = {"gircse": _old().vector("x").tolist()}
    bad = {1: {"page_content": POISON}, 2: {"nothing": "here"}, 3: {"page_content": "word " * 40}}
    client.upsert("old", [models.PointStruct(id=i, vector=vector, payload=p) for i, p in bad.items()])
    report = _migrate(client, _new(), alias="docs")
    assert report.failed.keys() == {"1", "2", "3"} and report.embedded == 50 and not report.alias_moved
    assert "the backend broke" in report.failed["1"] and "no text" in report.failed["2"]
    assert "longer than the 64 tokens" in report.failed["3"]
    assert client.count("new").count == 50 and client.get_aliases().aliases == []
    client.delete("old", models.PointIdsList(points=[1, 2, 3]))
    assert _migrate(client, _new(), alias="docs").alias_moved


def test_points_the_old_one_has_not_are_told_and_the_alias_stays(client: QdrantClient) -> None:
    _fill(client)
    embedder = _new()
    ingest([Document("mine", "only here")], collection="new", embedder=embedder, client=client)  # type: ignore[arg-type]
    report = _migrate(client, embedder, alias="docs")
    assert report.extra == 1 and not report.alias_moved and client.count("new").count == 51


def test_what_is_refused(client: QdrantClient) -> None:
    _fill(client)
    _fill(client, "third")
    for collection, alias in (("old", "docs"), ("third", "other")):
        create = models.CreateAlias(collection_name=collection, alias_name=alias)
        client.update_collection_aliases([models.CreateAliasOperation(create_alias=create)])
    embedder = _new()
    for old, new, options, error, message in (
        ("old", "old", {}, InputError, "one collection"),
        ("docs", "old", {}, InputError, "one collection"),
        ("nowhere", "new", {}, StoreError, r"no collection 'nowhere' \(there is: old"),
        ("old", "new", {"alias": "old"}, StoreError, "no alias of that name"),
        ("old", "new", {"alias": "new"}, InputError, "both called 'new'"),
        ("old", "other", {}, InputError, "'other' is an alias, of 'third'"),
        ("old", "a/b", {}, InputError, "cannot be called"),
        ("old", "new", {"batch_size": 0}, InputError, "batch_size"),
    ):
        with pytest.raises(error, match=message):
            migrate(old, new, embedder=embedder, client=client, **options)  # type: ignore[arg-type]
        assert not client.collection_exists("new")
    _migrate(client, embedder)
    with pytest.raises(SpecMismatchError):
        _migrate(client, _old())
    assert len(embedder.embedded) == 50


PROGRAM = """
    import os, sys, time
    from gircse_rag.qdrant import migrate, open_client
    from tests.unit.qdrant.test_migration import _new

    def tell(done, total):
        os.write(1, b"%d\\n" % done)
        time.sleep(0.01)

    client = open_client(**{sys.argv[1]: sys.argv[2]})
    migrate("old", "new", embedder=_new(), client=client, alias="docs", batch_size=5, progress=tell)
    os.write(1, b"done\\n")
"""


@pytest.mark.parametrize("kind", ["local", "edge", "server"])
def test_kills_cost_at_most_a_batch(kind: str, tmp_path: Path) -> None:
    if kind == "edge":
        pytest.importorskip("qdrant_edge", reason="the edge extra is not installed")
    with Shim() as shim:
        where = {"url": shim.url} if kind == "server" else {"path": str(tmp_path / "store")}
        client = open_client(**where, engine=None if kind == "server" else kind)  # type: ignore[arg-type]
        _fill(client)
        client.close()
        arguments = [sys.executable, "-c", textwrap.dedent(PROGRAM), *next(iter(where.items()))]
        for lines in (2, 6):
            child = subprocess.Popen(arguments, stdout=subprocess.PIPE, cwd=Path.cwd())
            assert child.stdout is not None
            for _ in range(lines):
                assert child.stdout.readline()
            time.sleep(0.005)
            os.kill(child.pid, signal.SIGKILL)
            child.communicate()
            client = open_client(**where)  # type: ignore[arg-type]
            there = client.count("new").count
            assert 5 * lines <= there < 50 and client.get_aliases().aliases == []
            client.close()
        client, embedder = open_client(**where), _new()  # type: ignore[arg-type]
        report = _migrate(client, embedder, alias="docs")
        assert (report.unchanged, report.embedded, report.alias_moved) == (there, 50 - there, True)
        _check(client, embedder)
        client.close()


def test_the_alias_is_moved_in_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    client = QdrantClient(":memory:")
    _fill(client)
    create = models.CreateAlias(collection_name="old", alias_name="docs")
    client.update_collection_aliases([models.CreateAliasOperation(create_alias=create)])
    asked, plain = [], client.update_collection_aliases
    monkeypatch.setattr(client, "update_collection_aliases", lambda change: asked.append(change) or plain(change))
    _migrate(client, _new(), alias="docs")
    assert [[type(change).__name__ for change in request] for request in asked] == [
        ["DeleteAliasOperation", "CreateAliasOperation"]
    ]


def _limit(client: QdrantClient, patch: pytest.MonkeyPatch, size: int) -> list[int]:
    """Let the store refuse a request of more bytes than `size`; how many points each request has that it takes."""
    upsert, taken = client.upsert, []

    def limited(collection: str, points: list[models.PointStruct], **options: Any) -> Any:
        if sum(len(point.model_dump_json()) for point in points) > size:
            raise UnexpectedResponse(413, "Payload Too Large", b"", httpx.Headers())
        taken.append(len(points))
        return upsert(collection, points, **options)

    patch.setattr(client, "upsert", limited)
    return taken


def _add_foreign(client: QdrantClient, *sizes: int) -> None:
    """Points with so many characters of metadata, of which none was written by us."""
    vector = {"gircse": _old().vector("x").tolist()}
    payloads = [
        {"page_content": f"foreign {number}", "metadata": {"x": "x" * size}} for number, size in enumerate(sizes)
    ]
    made = [models.PointStruct(id=number, vector=vector, payload=payload) for number, payload in enumerate(payloads)]
    client.upsert("old", made)


def test_a_request_is_never_larger_than_a_server_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    client = QdrantClient(":memory:")
    ensure_collection(client, "old", _old().spec)
    large = [Document(f"d{n}", f"text number {n}", {"blob": "x" * 200_000}) for n in range(90)]
    ingest(large, collection="old", embedder=_old(), client=client)  # type: ignore[arg-type]
    _add_foreign(client, *[400_000] * 90)
    taken, embedder = _limit(client, monkeypatch, 8 * 2**20), _new()
    report = _migrate(client, embedder, alias="docs")
    assert (report.embedded, report.failed, report.alias_moved) == (180, {}, True)
    assert sum(taken) == 180, "nothing was sent twice"
    old, new = _points(client, "old"), _points(client, "new")
    assert {key: point.payload for key, point in new.items()} == {key: point.payload for key, point in old.items()}


def test_a_point_that_the_store_refuses_is_named_and_the_rest_goes_in(
    client: QdrantClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fill(client)
    _add_foreign(client, 10, 50_000, 10, 60_000)
    with monkeypatch.context() as patch:
        _limit(client, patch, 40_000)
        report = _migrate(client, _new(), alias="docs", batch_size=16)
        assert report.failed.keys() == {"1", "3"} and "HTTP 413" in report.failed["1"]
        assert (report.points, report.embedded, report.extra, report.alias_moved) == (54, 52, 0, False)
        assert client.count("new").count == 52
    report = _migrate(client, _new(), alias="docs")
    assert (report.embedded, report.unchanged, report.alias_moved) == (2, 52, True)


def test_a_point_that_changed_and_is_refused_is_not_taken_for_one_that_the_old_one_has_not(
    client: QdrantClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fill(client)
    _add_foreign(client, 10)
    _migrate(client, _new())
    _add_foreign(client, 50_000)
    _limit(client, monkeypatch, 40_000)
    report = _migrate(client, _new(), alias="docs")
    assert (list(report.failed), report.extra, report.unchanged, report.alias_moved) == (["0"], 0, 50, False)
