from __future__ import annotations

import pytest
from qdrant_client import QdrantClient, models

from gircse_rag.errors import InputError
from gircse_rag.qdrant import Document, Hit, ingest, search
from gircse_rag.qdrant.points import point_id
from tests.unit.qdrant.standin import StandIn

TEXTS = {"cats": "cats purr and sleep", "dogs": "dogs bark and run", "birds": "birds sing at dawn"}


@pytest.fixture
def filled(client: QdrantClient, embedder: StandIn) -> QdrantClient:
    documents = [Document(name, text, {"legs": 2 if name == "birds" else 4}) for name, text in TEXTS.items()]
    ingest(documents, collection="docs", embedder=embedder, client=client)  # type: ignore[arg-type]
    return client


def _search(client: QdrantClient, embedder: StandIn, question: str, **options: object) -> list[Hit]:
    return search(question, collection="docs", embedder=embedder, client=client, **options)  # type: ignore[arg-type]


def test_hits_are_ranked_by_cosine_and_carry_the_document(filled: QdrantClient, embedder: StandIn) -> None:
    hits = _search(filled, embedder, "dogs bark and run")
    assert hits[0].document == "dogs" and len(hits) == 3
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    for hit in hits:
        assert hit.document is not None
        assert hit.text == TEXTS[hit.document] and hit.id == point_id(hit.document, 0)
        cosine = float(embedder.vector(hit.text) @ embedder.vector("dogs bark and run"))
        assert hit.score == pytest.approx(cosine, abs=1e-6)
    assert hits[0].metadata["source"] == "dogs" and hits[0].metadata["legs"] == 4
    assert hits[0].metadata["_chunk"] == {"number": 0, "chunks": 1, "start": 0, "end": 17, "headings": []}


def test_limit_and_filter_reach_qdrant(filled: QdrantClient, embedder: StandIn) -> None:
    assert len(_search(filled, embedder, "cats", limit=2)) == 2
    legs = models.FieldCondition(key="metadata.legs", match=models.MatchValue(value=2))
    hits = _search(filled, embedder, "cats", query_filter=models.Filter(must=[legs]))
    assert [hit.document for hit in hits] == ["birds"]


def test_instruction_and_steps_reach_the_embedder(filled: QdrantClient, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Listening(StandIn):
        def embed(self, texts, role="query", instruction=None, *, steps=None, on_error="raise"):  # type: ignore[no-untyped-def]
            asked.append((texts, role, instruction, steps))
            return super().embed(texts, role, instruction, steps=steps, on_error=on_error)

    _search(filled, Listening(), "cats", instruction="find animals", steps=20)
    assert asked == [(["cats"], "query", "find animals", 20)]


@pytest.mark.parametrize("limit", [0, -1, 2.5, True, None])
def test_a_limit_that_is_none_is_refused(filled: QdrantClient, embedder: StandIn, limit: object) -> None:
    with pytest.raises(InputError, match="limit must be"):
        _search(filled, embedder, "cats", limit=limit)


@pytest.mark.parametrize("question", ["", "  ", None, "\ud800"])
def test_a_question_that_is_none_is_refused(filled: QdrantClient, embedder: StandIn, question: str) -> None:
    with pytest.raises(InputError):
        _search(filled, embedder, question)


def test_points_that_something_else_wrote_are_hits_too(filled: QdrantClient, embedder: StandIn) -> None:
    vector = embedder.vector("written elsewhere").tolist()
    filled.upsert("docs", [models.PointStruct(id=7, vector={"gircse": vector}, payload={"page_content": "hi"})])
    assert _search(filled, embedder, "written elsewhere", limit=1) == [Hit("7", pytest.approx(1.0), "hi", {}, None)]
