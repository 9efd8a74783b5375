"""Haystack's standard suites on the document store, and collections shared with `gircse ingest`."""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gircse_rag import Embedder
from gircse_rag.qdrant import Document as GircseDocument
from gircse_rag.qdrant import ingest, search
from gircse_rag.qdrant.foreign import foreign_payload
from haystack import Document, Pipeline
from haystack.components.preprocessors import DocumentSplitter
from haystack.components.writers import DocumentWriter
from haystack.document_stores.errors import DocumentStoreError, DuplicateDocumentError
from haystack.document_stores.types import DuplicatePolicy
from haystack.errors import FilterError
from haystack.testing.document_store import CountDocumentsTest, DeleteDocumentsTest, WriteDocumentsTest
from haystack.utils import ComponentDevice
from integrations.fixtures import INSTRUCTION, TEXTS, RecordingBackend, render_query
from qdrant_client import models
from qdrant_client.local.local_collection import LocalCollection

from haystack_integrations.components.embedders.gircse import GircseDocumentEmbedder, GircseTextEmbedder
from haystack_integrations.components.retrievers.gircse import GircseQdrantEmbeddingRetriever
from haystack_integrations.document_stores.gircse import GircseQdrantDocumentStore

INGESTED = [GircseDocument(f"d{number}", text, {"number": number}) for number, text in enumerate(TEXTS)]


@pytest.fixture
def settings(tiny_folder: Path) -> dict[str, Any]:
    return {"model": str(tiny_folder), "dtype": "float32", "device": ComponentDevice.from_str("cpu")}


@pytest.fixture
def document_store(settings: dict[str, Any], tmp_path: Path) -> Iterator[GircseQdrantDocumentStore]:
    store = GircseQdrantDocumentStore("docs", GircseDocumentEmbedder(**settings), path=str(tmp_path / "qdrant"))
    yield store
    store.close()


@pytest.fixture
def embedder(document_store: GircseQdrantDocumentStore) -> Embedder:
    return document_store.embedder.embedder


@pytest.fixture
def ingested(document_store: GircseQdrantDocumentStore, embedder: Embedder) -> GircseQdrantDocumentStore:
    ingest(INGESTED, collection="docs", embedder=embedder, client=document_store.client)
    return document_store


class TestHaystacksOwnSuites(CountDocumentsTest, DeleteDocumentsTest, WriteDocumentsTest):
    def test_write_documents(self, document_store: GircseQdrantDocumentStore) -> None:
        """Haystack lets each store choose its default policy: ours rejects existing ids."""
        documents = [Document(content=text) for text in TEXTS]
        assert document_store.write_documents(documents) == 3
        with pytest.raises(DuplicateDocumentError, match=documents[1].id):
            document_store.write_documents(documents[1:])


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_reads_what_gircse_ingested(
    mode: str, ingested: GircseQdrantDocumentStore, embedder: Embedder, settings: dict[str, Any]
) -> None:
    vector = GircseTextEmbedder(**settings).run("heap", instruction=INSTRUCTION)["embedding"]
    retriever = GircseQdrantEmbeddingRetriever(ingested, top_k=5)
    theirs = retriever.run(vector) if mode == "sync" else asyncio.run(retriever.run_async(vector))
    ours = search(
        "heap", collection="docs", embedder=embedder, client=ingested.client, instruction=INSTRUCTION, mode="dense"
    )
    assert [(hit.id, hit.text, hit.metadata) for hit in ours] == [
        (document.id, document.content, document.meta) for document in theirs["documents"]
    ]
    assert [document.score for document in theirs["documents"]] == pytest.approx([hit.score for hit in ours], abs=1e-6)
    assert len(retriever.run(vector, top_k=1)["documents"]) == 1


def test_a_copy_opens_its_own_client(document_store: GircseQdrantDocumentStore) -> None:
    document_store.write_documents([Document(content=text) for text in TEXTS])
    document_store.close()
    clone = copy.copy(document_store)
    assert clone.count_documents() == len(TEXTS)
    clone.close()


def test_several_threads_share_one_client_in_turn(
    document_store: GircseQdrantDocumentStore, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    vector = document_store.embedder.embedder.embed_queries(["heap"])[0].tolist()
    document_store.write_documents([Document(content=text) for text in TEXTS])
    document_store.close()
    active, active_counts = [0], []
    query = LocalCollection.query_points

    def count_concurrent(*args: Any, **options: Any) -> Any:
        active[0] += 1
        active_counts.append(active[0])
        time.sleep(0.02)
        answer = query(*args, **options)
        active[0] -= 1
        return answer

    monkeypatch.setattr(LocalCollection, "query_points", count_concurrent)
    retriever = GircseQdrantEmbeddingRetriever(document_store)

    async def ask() -> list[dict[str, Any]]:
        return await asyncio.gather(*(retriever.run_async(vector) for _ in range(4)))

    answers = asyncio.run(ask())
    assert [len(answer["documents"]) for answer in answers] == [3] * 4
    assert active_counts == [1] * 4, "local mode is not safe for several threads"


def test_gircse_reads_written_documents_and_ingest_keeps_them(
    ingested: GircseQdrantDocumentStore, embedder: Embedder
) -> None:
    new = Document(content="a new text", meta={"by": "haystack"})
    ingested.write_documents(ingested.embedder.run([new])["documents"])
    again = ingest(INGESTED, collection="docs", embedder=embedder, client=ingested.client)
    assert (again.unchanged, again.embedded) == (3, 0)
    hits = search("new", collection="docs", embedder=embedder, client=ingested.client)
    assert ("a new text", {"by": "haystack"}, None) in [(hit.text, hit.metadata, hit.document) for hit in hits]
    (found,) = ingested.filter_documents({"field": "id", "operator": "==", "value": new.id})
    assert found == new
    ingested.delete_documents([new.id])
    assert {document.content for document in ingested.filter_documents()} == set(TEXTS)


def test_documents_without_an_embedding_are_embedded(
    document_store: GircseQdrantDocumentStore, embedder: Embedder
) -> None:
    recording_backend = embedder.backend = RecordingBackend(embedder.backend, embedder)
    (embedded,) = document_store.embedder.run([Document(content=TEXTS[0])])["documents"]
    document_store.write_documents([Document(content=TEXTS[1]), embedded, Document(content=TEXTS[2])])
    assert recording_backend.prompts == TEXTS
    vectors = {text: vector.tolist() for text, vector in zip(TEXTS, embedder.embed_documents(TEXTS), strict=True)}
    for text in TEXTS:
        (best, *_) = document_store.query(vectors[text], None, 1)
        assert (best.content, best.score) == (text, pytest.approx(1, abs=1e-5))


def test_indexing_and_query_pipelines_saved_and_loaded(
    document_store: GircseQdrantDocumentStore, embedder: Embedder, settings: dict[str, Any]
) -> None:
    indexing = Pipeline()
    indexing.add_component("splitter", DocumentSplitter(split_by="word", split_length=3))
    indexing.add_component("embedder", document_store.embedder)
    indexing.add_component("writer", DocumentWriter(document_store, DuplicatePolicy.SKIP))
    indexing.connect("splitter", "embedder")
    indexing.connect("embedder.documents", "writer.documents")
    files = [Document(content=text, meta={"file": str(number)}) for number, text in enumerate(TEXTS)]
    indexing.run({"splitter": {"documents": files}})
    querying = Pipeline()
    querying.add_component("embedder", GircseTextEmbedder(**settings))
    querying.add_component("retriever", GircseQdrantEmbeddingRetriever(document_store, top_k=9))
    querying.connect("embedder.embedding", "retriever.query_embedding")
    recording_backend = embedder.backend = RecordingBackend(embedder.backend, embedder)
    questions = [{"embedder": {"text": "heap", "instruction": each}} for each in (None, INSTRUCTION)]
    answers = [querying.run(question)["retriever"]["documents"] for question in questions]
    assert recording_backend.prompts == [render_query(embedder, "heap", each) for each in (None, INSTRUCTION)]
    assert {document.meta["file"] for document in answers[0]} == {"0", "1", "2"}
    assert indexing.run({"splitter": {"documents": files}})["writer"]["documents_written"] == 0
    saved = querying.dumps()
    document_store.close()
    loaded = Pipeline.loads(saved)
    again = loaded.run(questions[1])["retriever"]["documents"]
    assert [document.id for document in again] == [document.id for document in answers[1]]
    assert [document.score for document in again] == pytest.approx([each.score for each in answers[1]], abs=1e-5)
    loaded.get_component("retriever").document_store.close()


def test_filters_match_points_of_any_writer(ingested: GircseQdrantDocumentStore) -> None:
    ingested.write_documents([Document(content="a new text", meta={"number": 1, "place": {"page": 7}})])

    def found(filters: dict[str, Any]) -> set[str]:
        return {document.content for document in ingested.filter_documents(filters)}

    one = {"field": "meta.number", "operator": "==", "value": 1}
    page = {"field": "meta.place.page", "operator": ">", "value": 6}
    assert found(one) == {TEXTS[1], "a new text"}
    assert found({"operator": "AND", "conditions": [one, page]}) == {"a new text"}
    assert found({"operator": "NOT", "conditions": [one]}) == {TEXTS[0], TEXTS[2]}
    assert found({"field": "content", "operator": "==", "value": TEXTS[0]}) == {TEXTS[0]}
    with pytest.raises(FilterError, match="Unknown operator"):
        ingested.filter_documents({"field": "meta.number", "operator": "~", "value": 1})
    for operator, value, message in (
        ("in", [], "the list is empty"),
        ("not in", [1.5], "floats only with =="),
        ("==", float("nan"), "'number': nan is not a JSON number"),
        ("in", [1, 2**70], "'number': .* does not fit into 64 bits"),
        (">", 2**53 + 1, "'number': Qdrant compares ranges as floats"),
    ):
        with pytest.raises(FilterError, match=message):
            ingested.filter_documents({"field": "meta.number", "operator": operator, "value": value})
    assert found({"field": "meta.number", "operator": "in", "value": [1.0, 2, True]}) == {*TEXTS[1:], "a new text"}
    ingested.write_documents([Document(content="a text with a score", meta={"score": 0.1})])
    for value, expected in (0.1, {"a text with a score"}), (0.2, set()):
        assert found({"field": "meta.score", "operator": "==", "value": value}) == expected
    assert found({"field": "meta.number", "operator": "==", "value": 1.0}) == {TEXTS[1], "a new text"}
    ingested.write_documents([Document(content="a text with a date", meta={"Release Date": "2020"})])
    assert found({"field": "meta.Release Date", "operator": "==", "value": "2020"}) == {"a text with a date"}
    with pytest.raises(FilterError, match="no filter reaches"):
        found({"field": 'meta.in 3"', "operator": "==", "value": 1})
    retriever = GircseQdrantEmbeddingRetriever(ingested, filters=one, filter_policy="merge")
    vector = ingested.embedder.embedder.embed_queries(["x"])[0].tolist()
    assert [document.content for document in retriever.run(vector, filters=page)["documents"]] == ["a new text"]


def test_invalid_documents_write_nothing(ingested: GircseQdrantDocumentStore, settings: dict[str, Any]) -> None:
    good = Document(content="good")
    for bad, message in [
        (Document(content=None), "has no text"),
        (Document(content=""), "text 1 is empty"),
        (Document(content="short", embedding=[1.0]), "has an embedding of 1 numbers"),
        (Document(content="text", meta={"a": object()}), "cannot be stored"),
        (Document(content="text", meta={"a": float("nan")}), "cannot be stored"),
    ]:
        with pytest.raises(ValueError, match=message):
            ingested.write_documents([good, bad])
    with pytest.raises(DuplicateDocumentError):
        ingested.write_documents([good, good])
    assert ingested.count_documents() == 3
    with pytest.raises(ValueError, match="instance of GircseQdrantDocumentStore"):
        GircseQdrantEmbeddingRetriever("store")
    with pytest.raises(ValueError, match="top_k must be at least 1"):
        GircseQdrantEmbeddingRetriever(ingested, top_k=0)
    with pytest.raises(TypeError, match="unexpected keyword"):
        GircseQdrantDocumentStore("docs", ingested.embedder, paths="x")


def test_another_model_is_refused_and_the_store_is_unlocked(
    ingested: GircseQdrantDocumentStore, settings: dict[str, Any]
) -> None:
    ingested.close()
    other = GircseQdrantDocumentStore("docs", GircseDocumentEmbedder(**settings, steps=7), path=ingested.path)
    with pytest.raises(DocumentStoreError, match="document_steps: this embedder 7"):
        other.count_documents()
    assert ingested.count_documents() == 3
    with pytest.raises(DocumentStoreError, match="already open"):
        GircseQdrantDocumentStore("docs", ingested.embedder, path=ingested.path).count_documents()


UUID = "550e8400-e29b-41d4-a716-446655440000"
SPELLINGS = [UUID, UUID.upper(), UUID.replace("-", ""), f"{{{UUID}}}", f"urn:uuid:{UUID}"]


def test_each_spelling_of_a_uuid_is_a_document_of_its_own(document_store: GircseQdrantDocumentStore) -> None:
    assert document_store.write_documents([Document(id=own, content=own) for own in SPELLINGS]) == len(SPELLINGS)
    document_store.delete_documents(SPELLINGS[1:3])
    assert {document.id for document in document_store.filter_documents()} == {SPELLINGS[0], *SPELLINGS[3:]}


@pytest.mark.parametrize("own", SPELLINGS[1:])
def test_a_point_under_the_uuid_of_another_spelling_is_replaced_and_deleted(
    document_store: GircseQdrantDocumentStore, embedder: Embedder, own: str
) -> None:
    def write_as_before() -> None:
        vector = {"gircse": [1.0] * embedder.dimension}
        payload = foreign_payload(own, "old", {})
        document_store.client.upsert("docs", [models.PointStruct(id=UUID, vector=vector, payload=payload)])

    write_as_before()
    new = [Document(id=own, content="new")]
    with pytest.raises(DuplicateDocumentError):
        document_store.write_documents(new)
    assert document_store.write_documents(new, DuplicatePolicy.SKIP) == 0
    assert document_store.write_documents(new, DuplicatePolicy.OVERWRITE) == 1
    assert [(each.id, each.content) for each in document_store.filter_documents()] == [(own, "new")]
    write_as_before()
    document_store.delete_documents([own])
    assert document_store.count_documents() == 0


def test_a_password_is_not_serialized(tiny_folder: Path) -> None:
    embedder = GircseDocumentEmbedder(str(tiny_folder))
    assert GircseQdrantDocumentStore("docs", embedder, url="http://host:6333").to_dict()
    with pytest.raises(ValueError, match=r"http://\*\*\*@host:6333 holds a password.*QDRANT_URL") as caught:
        GircseQdrantDocumentStore("docs", embedder, url="http://me:s3cret@host:6333").to_dict()
    assert "s3cret" not in str(caught.value)
