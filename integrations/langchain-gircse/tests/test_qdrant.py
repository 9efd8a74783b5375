"""`gircse ingest`, our store and LangChain's own store read and write the same collection."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from gircse_rag import Embedder
from gircse_rag.qdrant import Document, ingest, open_client, search
from gircse_rag.qdrant.foreign import foreign_payload
from gircse_rag.spec import DEFAULT_STEPS
from integrations.fixtures import INSTRUCTION, TEXTS, RecordingBackend, render_query
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_qdrant import QdrantVectorStore
from langchain_qdrant.qdrant import QdrantVectorStoreError
from qdrant_client import QdrantClient
from qdrant_client.models import PointStruct

from langchain_gircse import GircseEmbeddings, GircseInvalidRequestError
from langchain_gircse.qdrant import GircseQdrantVectorStore

DOCUMENTS = [Document(f"d{number}", text, {"number": number}) for number, text in enumerate(TEXTS)]


@pytest.fixture
def client(tmp_path: Path) -> Iterator[QdrantClient]:
    client = open_client(tmp_path / "qdrant")
    yield client
    client.close()


@pytest.fixture
def store(client: QdrantClient, embeddings: GircseEmbeddings) -> GircseQdrantVectorStore:
    ingest(DOCUMENTS, collection="docs", embedder=embeddings.embedder, client=client)
    return GircseQdrantVectorStore(client, "docs", embeddings)


def test_reads_what_gircse_ingested(store: GircseQdrantVectorStore, tiny_embedder: Embedder) -> None:
    ours = search("heap", collection="docs", embedder=tiny_embedder, client=store.client)
    theirs = store.similarity_search_with_score("heap", k=5)
    assert [(hit.id, hit.text, hit.metadata) for hit in ours] == [
        (document.id, document.page_content, document.metadata) for document, _ in theirs
    ]
    assert [hit.score for hit in ours] == pytest.approx([score for _, score in theirs], abs=1e-6)


def test_langchains_own_store_reads_and_writes(store: GircseQdrantVectorStore, tiny_embedder: Embedder) -> None:
    plain = QdrantVectorStore(store.client, "docs", store.embeddings, vector_name="gircse")
    plain.add_texts(["written by LangChain"], [{"by": "langchain"}])
    hits = search("written", collection="docs", embedder=tiny_embedder, client=store.client)
    assert ("written by LangChain", {"by": "langchain"}) in [(hit.text, hit.metadata) for hit in hits]
    assert {document.page_content for document in plain.similarity_search("x", k=9)} == {*TEXTS, "written by LangChain"}


def test_gircse_reads_added_texts_and_ingest_keeps_them(
    store: GircseQdrantVectorStore, tiny_embedder: Embedder
) -> None:
    assert store.add_texts(["a new text"], [{"by": "langchain"}], ["my-id"]) == ["my-id"]
    again = ingest(DOCUMENTS, collection="docs", embedder=tiny_embedder, client=store.client)
    assert (again.unchanged, again.embedded) == (3, 0)
    hits = search("new", collection="docs", embedder=tiny_embedder, client=store.client)
    assert ("a new text", {"by": "langchain"}, None) in [(hit.text, hit.metadata, hit.document) for hit in hits]
    assert store.delete(["my-id"])
    assert len(search("new", collection="docs", embedder=tiny_embedder, client=store.client, limit=9)) == 3


def test_retriever_of_the_store(
    store: GircseQdrantVectorStore, tiny_embedder: Embedder, recording_backend: RecordingBackend
) -> None:
    found = store.as_retriever(search_kwargs={"k": 2}).invoke("x", instruction=INSTRUCTION)
    assert recording_backend.prompts == [render_query(tiny_embedder, "x", INSTRUCTION)]
    expected = search(
        "x", collection="docs", embedder=tiny_embedder, client=store.client, instruction=INSTRUCTION, limit=2
    )
    assert [document.id for document in found] == [hit.id for hit in expected]
    assert len(store.as_retriever(search_type="mmr").invoke("x", instruction=INSTRUCTION)) == 3


def test_another_model_is_refused(store: GircseQdrantVectorStore, tiny_folder: Path) -> None:
    other = GircseEmbeddings(model=str(tiny_folder), steps=DEFAULT_STEPS + 1, dtype="float32", device="cpu")
    with pytest.raises(QdrantVectorStoreError, match=rf"document_steps: this embedder {DEFAULT_STEPS + 1}"):
        GircseQdrantVectorStore(store.client, "docs", other)
    with pytest.raises(TypeError, match="must be GircseEmbeddings"):
        GircseQdrantVectorStore(store.client, "docs", DeterministicFakeEmbedding(size=3))


def test_a_bad_text_writes_nothing(store: GircseQdrantVectorStore) -> None:
    with pytest.raises(GircseInvalidRequestError, match="text 1 is empty"):
        store.add_texts(["good", ""])
    for bad in ({"score": float("nan")}, {"by": "\ud800"}, {"sizes": {1: "a"}}):
        with pytest.raises(GircseInvalidRequestError, match="'b' cannot be stored: its metadata"):
            store.add_texts(["good", "too"], [{}, bad], ["a", "b"])
    with pytest.raises(ValueError, match="2 texts, 1 ids"):
        store.add_texts(["good", "too"], ids=["one"])
    assert store.client.count("docs").count == 3


def test_from_texts_and_from_existing_collection(embeddings: GircseEmbeddings, tmp_path: Path) -> None:
    new = GircseQdrantVectorStore.from_texts(TEXTS, embeddings, collection_name="new", path=str(tmp_path))
    new.client.close()
    reopened = GircseQdrantVectorStore.from_existing_collection("new", embeddings, path=str(tmp_path))
    assert {document.page_content for document in reopened.similarity_search("x")} == set(TEXTS)
    reopened.client.close()


def test_failed_opening_creates_nothing_and_unlocks_the_store(
    embeddings: GircseEmbeddings, tmp_path: Path, tiny_folder: Path
) -> None:
    store, path = GircseQdrantVectorStore, str(tmp_path)
    other = GircseEmbeddings(model=str(tiny_folder), steps=DEFAULT_STEPS + 1, dtype="float32", device="cpu")
    fake = DeterministicFakeEmbedding(size=3)
    with pytest.raises(GircseInvalidRequestError, match="text 1 is empty"):
        store.from_texts(["good", ""], embeddings, collection_name="new", path=path)
    with pytest.raises(QdrantVectorStoreError, match="there is no Qdrant store in"):
        store.from_existing_collection("new", embeddings, path=str(tmp_path / "nowhere"))
    with pytest.raises(QdrantVectorStoreError, match=r"no collection 'knew' \(there is: new\)"):
        store.from_existing_collection("knew", embeddings, path=path)
    for embedding, error, message in (
        (other, QdrantVectorStoreError, "document_steps"),
        (fake, TypeError, "must be GircseEmbeddings"),
    ):
        with pytest.raises(error, match=message):
            store.from_existing_collection("new", embedding, path=path)
        with pytest.raises(error, match=message):
            store.from_texts(["text"], embedding, collection_name="new", path=path)
    client = open_client(tmp_path)
    assert [collection.name for collection in client.get_collections().collections] == ["new"]
    client.close()


UUID = "550e8400-e29b-41d4-a716-446655440000"
SPELLINGS = [UUID, UUID.upper(), UUID.replace("-", ""), f"{{{UUID}}}", f"urn:uuid:{UUID}"]


def test_each_spelling_of_a_uuid_is_a_document_of_its_own(store: GircseQdrantVectorStore) -> None:
    store.add_texts([f"text of {own}" for own in SPELLINGS], ids=SPELLINGS)
    for own in SPELLINGS:
        (document,) = store.get_by_ids([own])
        assert (document.id, document.page_content) == (own, f"text of {own}")
    store.delete(SPELLINGS[1:3])
    assert {document.id for document in store.get_by_ids(SPELLINGS)} == {SPELLINGS[0], *SPELLINGS[3:]}


@pytest.mark.parametrize("own", SPELLINGS[1:])
def test_a_point_under_the_uuid_of_another_spelling_is_read_replaced_and_deleted(
    store: GircseQdrantVectorStore, own: str
) -> None:
    def write_as_before() -> None:
        vector = {"gircse": store.embeddings.embed_query("old")}
        store.client.upsert("docs", [PointStruct(id=UUID, vector=vector, payload=foreign_payload(own, "old", {}))])

    write_as_before()
    assert [document.page_content for document in store.get_by_ids([own])] == ["old"]
    store.add_texts(["new"], ids=[own])
    assert [document.page_content for document in store.get_by_ids([own])] == ["new"]
    assert store.client.count("docs").count == len(DOCUMENTS) + 1
    write_as_before()
    store.delete([own])
    assert store.get_by_ids([own]) == [] and store.client.count("docs").count == len(DOCUMENTS)


def test_points_of_langchains_own_store_are_read_and_deleted_by_their_ids(store: GircseQdrantVectorStore) -> None:
    plain = QdrantVectorStore(store.client, "docs", store.embeddings, vector_name="gircse")
    (own,) = plain.add_texts(["written by LangChain"])
    assert [document.page_content for document in store.get_by_ids([own])] == ["written by LangChain"]
    store.delete([own])
    assert plain.get_by_ids([own]) == []
