"""`add_lexical` on every kind of store."""

from __future__ import annotations

from typing import Any

import pytest
from qdrant_client import QdrantClient, models

from gircse_rag.errors import InputError, StoreError
from gircse_rag.qdrant import Document, add_lexical, adding_lexical, ingest, search
from tests.qdrant_shim import Shim
from tests.stand_in import StandIn

COUNT = 20
PAGE = 8


@pytest.fixture
def client(every_store: QdrantClient, monkeypatch: pytest.MonkeyPatch) -> QdrantClient:
    monkeypatch.setattr(adding_lexical, "_POINTS_PER_REQUEST", PAGE)
    return every_store


@pytest.fixture
def old(client: QdrantClient, embedder: StandIn) -> QdrantClient:
    """A collection as earlier versions made it, with a point of another tool and a text without terms."""
    params = models.VectorParams(size=embedder.dimension, distance=models.Distance.COSINE)
    stamp = {"fingerprint": embedder.fingerprint, "spec": embedder.spec.to_dict()}
    client.create_collection("docs", {"gircse": params}, metadata={"gircse": stamp, "theirs": 1})
    documents = [Document(f"d{number}", f"running shoe number {number}") for number in range(COUNT)]
    ingest([*documents, Document("none", "to be or not")], collection="docs", embedder=embedder, client=client)
    vector = embedder.vector("x").tolist()
    node = {"_node_content": '{"text": "a runner from a node", "metadata": {}}'}
    client.upsert("docs", [models.PointStruct(id=7, vector={"gircse": vector}, payload=node)])
    embedder.embedded.clear()
    return client


def _lexical(client: QdrantClient, embedder: StandIn, question: str) -> list[str]:
    hits = search(question, collection="docs", embedder=embedder, client=client, mode="lexical")
    return [hit.document or hit.text for hit in hits]


def _vectors(client: QdrantClient, name: str) -> dict[Any, dict[int, float]]:
    points, _ = client.scroll(name, limit=2000, with_vectors=True)
    vectors: dict[Any, Any] = {point.id: point.vector for point in points}
    return {
        point: dict(zip(vector["bm25"].indices, vector["bm25"].values, strict=True)) if "bm25" in vector else {}
        for point, vector in vectors.items()
    }


def test_the_vectors_are_those_of_a_new_collection(old: QdrantClient, embedder: StandIn) -> None:
    seen: list[tuple[int, int]] = []
    report = add_lexical("docs", client=old, progress=lambda done, total: seen.append((done, total)))
    assert (report.points, report.encoded, report.without_terms) == (COUNT + 2, COUNT + 1, 1)
    assert seen[-1] == (COUNT + 2, COUNT + 2) and len(seen) == 3
    assert embedder.embedded == []
    documents = [Document(f"d{number}", f"running shoe number {number}") for number in range(COUNT)]
    ingest([*documents, Document("none", "to be or not")], collection="new", embedder=embedder, client=old)
    added, new = _vectors(old, "docs"), _vectors(old, "new")
    assert added.pop(7)
    assert added.keys() == new.keys()
    for point, vector in new.items():
        assert added[point] == pytest.approx(vector)
    assert _lexical(old, embedder, "number 17 runs")[0] == "d17"
    assert _lexical(old, embedder, "nodes") == ["a runner from a node"]
    metadata = old.get_collection("docs").config.metadata
    assert metadata is not None and metadata["theirs"] == 1


def test_a_second_call_finds_nothing_to_do_and_later_ingests_write_the_vector(
    old: QdrantClient, embedder: StandIn
) -> None:
    add_lexical("docs", client=old)
    report = add_lexical("docs", client=old)
    assert (report.points, report.encoded, report.without_terms) == (COUNT + 2, 0, 1)
    ingest([Document("late", "a late bird")], collection="docs", embedder=embedder, client=old)
    assert _lexical(old, embedder, "birds") == ["late"]


def test_an_interrupted_call_continues(old: QdrantClient, embedder: StandIn) -> None:
    class StopError(Exception):
        pass

    def stop(done: int, total: int) -> None:
        raise StopError

    with pytest.raises(StopError):
        add_lexical("docs", client=old, progress=stop)
    hits = search("shoe", collection="docs", embedder=embedder, client=old, mode="dense")
    assert len(hits) == 5  # the collection stays usable
    report = add_lexical("docs", client=old)
    assert COUNT + 1 - PAGE <= report.encoded <= COUNT + 2 - PAGE  # the first page may hold the text without terms
    assert _lexical(old, embedder, "number 5")[0] == "d5"


def test_the_language_is_recorded(old: QdrantClient, embedder: StandIn) -> None:
    add_lexical("docs", client=old, language="german")
    metadata = old.get_collection("docs").config.metadata
    assert metadata is not None and metadata["gircse"]["lexical"]["language"] == "german"
    with pytest.raises(InputError, match="in german, not in french"):
        add_lexical("docs", client=old, language="french")


def test_bad_calls_are_refused(old: QdrantClient) -> None:
    with pytest.raises(StoreError, match="there is no collection 'other'"):
        add_lexical("other", client=old)
    with pytest.raises(InputError, match="'latin' has no stemmer"):
        add_lexical("docs", client=old, language="latin")


def test_an_old_server_is_named(embedder: StandIn) -> None:
    with Shim() as shim:
        client = shim.client()
        params = models.VectorParams(size=embedder.dimension, distance=models.Distance.COSINE)
        stamp = {"fingerprint": embedder.fingerprint, "spec": embedder.spec.to_dict()}
        client.create_collection("docs", {"gircse": params}, metadata={"gircse": stamp})
        shim.fail_next(["404"], path="/vectors/")
        with pytest.raises(StoreError, match=r"Qdrant 1\.18 and later can.*gircse migrate docs NEW"):
            add_lexical("docs", client=client)
