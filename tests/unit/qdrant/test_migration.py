"""Migration to another model: complete, resumable after kills, and invisible until the alias moves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import UnexpectedResponse

from gircse_rag.errors import InputError, SpecMismatchError, StoreError
from gircse_rag.qdrant import Document, MigrationReport, ingest, migrate, open_client, search, verify
from gircse_rag.qdrant.schema import ensure_collection
from tests.qdrant_shim import Shim
from tests.stand_in import POISON, StandIn

TEXTS = {f"doc {n}": f"text number {n} about subject {n % 7}" for n in range(50)}


def _old_embedder() -> StandIn:
    return StandIn()


def _new_embedder(**options: Any) -> StandIn:
    return StandIn(dimension=24, base_hash="better", **options)


def _fill(client: QdrantClient, collection: str = "old") -> None:
    documents = [Document(name, text, {"n": len(text), "deep": {"a": [1, None, 2.5]}}) for name, text in TEXTS.items()]
    ingest(documents, collection=collection, embedder=_old_embedder(), client=client)


def _migrate(client: QdrantClient, embedder: StandIn, **options: Any) -> MigrationReport:
    return migrate("old", "new", embedder=embedder, client=client, **options)


def _points(client: QdrantClient, collection: str) -> dict[object, models.Record]:
    return {r.id: r for r in client.scroll(collection, limit=10_000, with_payload=True, with_vectors=True)[0]}


def _check(client: QdrantClient, embedder: StandIn) -> None:
    old, new = _points(client, "old"), _points(client, "new")
    assert old.keys() == new.keys() and len(new) >= len(TEXTS)
    for key, point in new.items():
        assert _copied(point) == _copied(old[key])
        assert point.payload is not None and isinstance(point.vector, dict)
        vector = np.asarray(point.vector["gircse"])
        np.testing.assert_allclose(vector, embedder.vector(point.payload["page_content"]), atol=1e-6)
    assert verify("new", client).damaged == []


def _copied(point: models.Record) -> dict[str, Any]:
    """A payload without the checksum of the vector, which the new model changes."""
    payload = dict(point.payload or {})
    if "gircse" in payload:
        payload["gircse"] = {k: v for k, v in payload["gircse"].items() if k not in ("vector", "check")}
    return payload


@pytest.fixture(params=["local", "edge"])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[QdrantClient]:
    if request.param == "edge":
        pytest.importorskip("qdrant_edge", reason="the edge extra is not installed")
    client = open_client(tmp_path / "store", engine=request.param)
    yield client
    client.close()


def test_the_same_points_get_new_vectors_and_the_alias_moves(client: QdrantClient) -> None:
    _fill(client)
    first = models.CreateAlias(collection_name="old", alias_name="docs")
    client.update_collection_aliases([models.CreateAliasOperation(create_alias=first)])
    embedder, reported = _new_embedder(), []
    report = _migrate(client, embedder, alias="docs", batch_size=16, progress=lambda *at: reported.append(at))
    assert (report.points, report.embedded, report.unchanged, report.extra) == (50, 50, 0, 0)
    assert report.alias_moved and not report.failed and report.prompt_tokens > 0
    assert reported[:4] == [(16, 50), (32, 50), (48, 50), (50, 50)]
    assert len(embedder.embedded) == 50
    _check(client, embedder)
    hits = search(TEXTS["doc 3"], collection="docs", embedder=embedder, client=client, limit=1)
    assert hits[0].document == "doc 3"
    with pytest.raises(SpecMismatchError):
        search("text", collection="docs", embedder=_old_embedder(), client=client)
    assert client.count("old").count == 50  # the old collection still answers
    assert search("text", collection="old", embedder=_old_embedder(), client=client)


def test_a_second_migration_embeds_only_new_and_changed_points(client: QdrantClient) -> None:
    _fill(client)
    _migrate(client, _new_embedder())
    again = _new_embedder()
    assert _migrate(client, again).unchanged == 50 and again.embedded == []
    changed = [Document("doc 3", "another text"), Document("more", "one more")]
    ingest(changed, collection="old", embedder=_old_embedder(), client=client)
    report = _migrate(client, again)
    assert sorted(again.embedded) == ["another text", "one more"] and (report.embedded, report.unchanged) == (2, 49)
    _check(client, again)


def test_an_ingest_after_a_migration_embeds_nothing(client: QdrantClient) -> None:
    _fill(client)
    _migrate(client, _new_embedder())
    documents = [Document(name, text, {"n": len(text), "deep": {"a": [1, None, 2.5]}}) for name, text in TEXTS.items()]
    embedder = _new_embedder()
    report = ingest(documents, collection="new", embedder=embedder, client=client)
    assert embedder.embedded == [] and not report.failed


def test_points_of_other_tools_are_migrated(client: QdrantClient) -> None:
    _fill(client)
    vector = {"gircse": _old_embedder().vector("x").tolist()}
    client.upsert("old", [models.PointStruct(id=7, vector=vector, payload={"page_content": "by hand", "k": [1]})])
    embedder = _new_embedder()
    assert _migrate(client, embedder).points == 51
    _check(client, embedder)


def test_points_that_cannot_be_embedded_are_reported_and_the_alias_stays(client: QdrantClient) -> None:
    _fill(client)
    vector = {"gircse": _old_embedder().vector("x").tolist()}
    bad: dict[int, Any] = {
        1: {"page_content": POISON},
        2: {"nothing": "here"},
        3: {"page_content": "word " * 40},
        4: {"page_content": 42},
        5: {"_node_content": "no JSON", "metadata": "none"},
    }
    client.upsert("old", [models.PointStruct(id=i, vector=vector, payload=p) for i, p in bad.items()])
    report = _migrate(client, _new_embedder(), alias="docs")
    assert report.failed.keys() == {"1", "2", "3", "4", "5"} and report.embedded == 50 and not report.alias_moved
    assert report.failed["1"] == "the backend broke" and all("no text" in report.failed[i] for i in "245")
    assert "longer than the 64 tokens" in report.failed["3"]
    assert client.count("new").count == 50 and client.get_aliases().aliases == []
    client.delete("old", models.PointIdsList(points=list(bad)))
    assert _migrate(client, _new_embedder(), alias="docs").alias_moved


def test_extra_points_in_the_new_collection_are_reported_and_the_alias_stays(client: QdrantClient) -> None:
    _fill(client)
    embedder = _new_embedder()
    ingest([Document("mine", "only here")], collection="new", embedder=embedder, client=client)
    report = _migrate(client, embedder, alias="docs")
    assert report.extra == 1 and not report.alias_moved and client.count("new").count == 51


def test_invalid_migrations_are_refused(client: QdrantClient) -> None:
    _fill(client)
    _fill(client, "third")
    for collection, alias in (("old", "docs"), ("third", "other")):
        create = models.CreateAlias(collection_name=collection, alias_name=alias)
        client.update_collection_aliases([models.CreateAliasOperation(create_alias=create)])
    embedder = _new_embedder()
    for old, new, options, error, message in (
        ("old", "old", {}, InputError, "one collection"),
        ("docs", "old", {}, InputError, "one collection"),
        ("nowhere", "new", {}, StoreError, r"no collection 'nowhere' \(there is: old"),
        ("old", "new", {"alias": "old"}, StoreError, "no alias of that name"),
        ("old", "new", {"alias": "new"}, InputError, "both called 'new'"),
        ("old", "other", {}, InputError, "'other' is an alias, of 'third'"),
        ("old", "a/b", {}, InputError, "cannot be called"),
        ("old", "new", {"batch_size": 0}, InputError, "batch_size"),
        ("old", "new", {"batch_size": 2**70}, InputError, "batch_size"),
        ("old", "new", {"alias": ""}, InputError, "an alias cannot be called ''"),
        ("old", "new", {"alias": "a/b"}, InputError, "an alias cannot be called"),
        ("old", "é" * 200, {}, InputError, "a collection cannot be called"),
    ):
        with pytest.raises(error, match=message):
            migrate(old, new, embedder=embedder, client=client, **options)
        assert not client.collection_exists("new")
    _migrate(client, embedder)
    with pytest.raises(SpecMismatchError):
        _migrate(client, _old_embedder())
    assert len(embedder.embedded) == 50


PROGRAM = """
    import os, sys, time
    from gircse_rag.qdrant import migrate, open_client
    from tests.unit.qdrant.test_migration import _new_embedder

    def report(done, total):
        os.write(1, b"%d\\n" % done)
        time.sleep(0.01)

    client = open_client(**{sys.argv[1]: sys.argv[2]})
    migrate("old", "new", embedder=_new_embedder(), client=client, alias="docs", batch_size=5, progress=report)
    os.write(1, b"done\\n")
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["local", "edge", "server"])
def test_a_kill_costs_at_most_one_batch(kind: str, tmp_path: Path) -> None:
    if kind == "edge":
        pytest.importorskip("qdrant_edge", reason="the edge extra is not installed")
    with Shim() as shim:
        where: dict[str, Any] = {"url": shim.url} if kind == "server" else {"path": str(tmp_path / "store")}
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
            client = open_client(**where)
            stored = client.count("new").count
            assert 5 * lines <= stored < 50 and client.get_aliases().aliases == []
            client.close()
        client, embedder = open_client(**where), _new_embedder()
        report = _migrate(client, embedder, alias="docs")
        assert (report.unchanged, report.embedded, report.alias_moved) == (stored, 50 - stored, True)
        _check(client, embedder)
        client.close()


def test_the_alias_is_moved_in_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    client = QdrantClient(":memory:")
    _fill(client)
    create = models.CreateAlias(collection_name="old", alias_name="docs")
    client.update_collection_aliases([models.CreateAliasOperation(create_alias=create)])
    requests: list[Any] = []
    plain = client.update_collection_aliases

    def record(change: Any) -> bool:
        requests.append(change)
        return plain(change)

    monkeypatch.setattr(client, "update_collection_aliases", record)
    _migrate(client, _new_embedder(), alias="docs")
    assert [[type(change).__name__ for change in request] for request in requests] == [
        ["DeleteAliasOperation", "CreateAliasOperation"]
    ]


def _limit_request_size(client: QdrantClient, patch: pytest.MonkeyPatch, size: int) -> list[int]:
    """Make the store refuse requests of more than `size` bytes. Returns the points per accepted request."""
    upsert, accepted = client.upsert, []

    def limited(collection: str, points: list[models.PointStruct], **options: Any) -> Any:
        if sum(len(point.model_dump_json()) for point in points) > size:
            raise UnexpectedResponse(413, "Payload Too Large", b"", httpx.Headers())
        accepted.append(len(points))
        return upsert(collection, points, **options)

    patch.setattr(client, "upsert", limited)
    return accepted


def _add_foreign(client: QdrantClient, *sizes: int) -> None:
    """Add points as another tool would, one per size, with that many characters of metadata."""
    vector = {"gircse": _old_embedder().vector("x").tolist()}
    payloads = [
        {"page_content": f"foreign {number}", "metadata": {"x": "x" * size}} for number, size in enumerate(sizes)
    ]
    points = [models.PointStruct(id=number, vector=vector, payload=payload) for number, payload in enumerate(payloads)]
    client.upsert("old", points)


@pytest.mark.slow
def test_requests_stay_below_the_servers_size_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    client = QdrantClient(":memory:")
    ensure_collection(client, "old", _old_embedder().spec)
    large = [Document(f"d{n}", f"text number {n}", {"blob": "x" * 200_000}) for n in range(90)]
    ingest(large, collection="old", embedder=_old_embedder(), client=client)
    _add_foreign(client, *[400_000] * 90)
    accepted, embedder = _limit_request_size(client, monkeypatch, 8 * 2**20), _new_embedder()
    report = _migrate(client, embedder, alias="docs")
    assert (report.embedded, report.failed, report.alias_moved) == (180, {}, True)
    assert sum(accepted) == 180, "points were sent twice"
    old, new = _points(client, "old"), _points(client, "new")
    assert {key: _copied(point) for key, point in new.items()} == {key: _copied(point) for key, point in old.items()}


def test_a_point_that_the_store_refuses_is_reported_and_the_rest_is_migrated(
    client: QdrantClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fill(client)
    _add_foreign(client, 10, 50_000, 10, 60_000)
    with monkeypatch.context() as patch:
        _limit_request_size(client, patch, 40_000)
        report = _migrate(client, _new_embedder(), alias="docs", batch_size=16)
        assert report.failed.keys() == {"1", "3"} and "HTTP 413" in report.failed["1"]
        assert (report.points, report.embedded, report.extra, report.alias_moved) == (54, 52, 0, False)
        assert client.count("new").count == 52
    report = _migrate(client, _new_embedder(), alias="docs")
    assert (report.embedded, report.unchanged, report.alias_moved) == (2, 52, True)


def test_a_changed_point_that_is_refused_is_not_counted_as_extra(
    client: QdrantClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fill(client)
    _add_foreign(client, 10)
    _migrate(client, _new_embedder())
    _add_foreign(client, 50_000)
    _limit_request_size(client, monkeypatch, 40_000)
    report = _migrate(client, _new_embedder(), alias="docs")
    assert (list(report.failed), report.extra, report.unchanged, report.alias_moved) == (["0"], 0, 50, False)


def test_damage_in_the_old_collection_is_not_hidden_by_new_checksums(client: QdrantClient) -> None:
    _fill(client)
    (text, record), _ = client.scroll("old", limit=2)
    client.set_payload("old", {"page_content": "?"}, points=[text.id])
    client.set_payload("old", {"gircse": {**(record.payload or {})["gircse"], "reach": 9}}, points=[record.id])
    _migrate(client, _new_embedder())
    found = {damage.point: damage.reason for damage in verify("new", client).damaged if damage.point}
    assert found == {str(text.id): "its text differs", str(record.id): "its record differs"}
