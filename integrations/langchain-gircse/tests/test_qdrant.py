"""`gircse ingest`, our store and LangChain's own store read and write the same collection."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gircse_rag import Embedder, GircseWarning
from gircse_rag.qdrant import Document, ingest, open_client, search
from gircse_rag.qdrant.foreign import foreign_payload
from gircse_rag.spec import DEFAULT_STEPS
from integrations.fixtures import INSTRUCTION, TEXTS, RecordingBackend, render_query
from langchain_core.documents import Document as LangChainDocument
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.vectorstores import VectorStoreRetriever
from langchain_qdrant import QdrantVectorStore
from langchain_qdrant.qdrant import QdrantVectorStoreError
from qdrant_client import QdrantClient
from qdrant_client.models import PointStruct

from langchain_gircse import GircseEmbeddings, GircseInvalidRequestError, GircseRetriever
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
    ours = search("heap", collection="docs", embedder=tiny_embedder, client=store.client, mode="dense")
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


@pytest.mark.parametrize("search_type", ["similarity", "similarity_score_threshold", "mmr"])
def test_the_instruction_reaches_the_model_by_every_way(
    search_type: str, store: GircseQdrantVectorStore, tiny_embedder: Embedder, recording_backend: RecordingBackend
) -> None:
    threshold = {"score_threshold": 0.0} if search_type == "similarity_score_threshold" else {}
    options: dict[str, Any] = {"search_type": search_type, "search_kwargs": {"k": 2, **threshold}}
    plain = VectorStoreRetriever(vectorstore=store, **options)
    found = plain.invoke("x", instruction=INSTRUCTION)
    later = asyncio.run(plain.ainvoke("x", instruction=INSTRUCTION))
    ours = store.as_retriever(**options)
    assert found == later == ours.invoke("x", instruction=INSTRUCTION)
    assert len(found) == 2
    with pytest.warns(GircseWarning, match="queries take 2 refinement steps"):
        store.similarity_search("x", steps=2)
    store.similarity_search_with_relevance_scores("x", instruction=INSTRUCTION)
    instructed = render_query(tiny_embedder, "x", INSTRUCTION)
    assert recording_backend.prompts == [*[instructed] * 3, render_query(tiny_embedder, "x"), instructed]


def test_langchains_own_store_refuses_an_instruction(store: GircseQdrantVectorStore) -> None:
    plain = QdrantVectorStore(store.client, "docs", store.embeddings, vector_name="gircse")
    assert plain.as_retriever().invoke("x")
    for search_type in ("similarity", "mmr"):
        with pytest.raises(AssertionError, match="Unknown arguments"):  # of qdrant-client
            plain.as_retriever(search_type=search_type).invoke("x", instruction=INSTRUCTION)
    assert GircseRetriever(vectorstore=plain).invoke("x", instruction=INSTRUCTION)


@pytest.mark.parametrize("threshold", [0.0, 0.55, 0.999])
def test_the_score_threshold_is_that_of_langchains_own_store(store: GircseQdrantVectorStore, threshold: float) -> None:
    options: dict[str, Any] = {
        "search_type": "similarity_score_threshold",
        "search_kwargs": {"k": 3, "score_threshold": threshold},
    }
    plain = QdrantVectorStore(store.client, "docs", store.embeddings, vector_name="gircse")
    expected = [document.page_content for document in plain.as_retriever(**options).invoke("a heap")]
    for retriever in (store.as_retriever(**options), GircseRetriever(vectorstore=plain, **options)):
        assert [document.page_content for document in retriever.invoke("a heap")] == expected
    assert len(expected) == (3 if threshold == 0.0 else len(expected))


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
    with pytest.raises(ValueError, match=r"texts \(2\), ids \(1\)"):
        store.add_texts(["good", "too"], ids=["one"])
    assert store.client.count("docs").count == 3


def test_from_texts_and_from_existing_collection(embeddings: GircseEmbeddings, tmp_path: Path) -> None:
    new = GircseQdrantVectorStore.from_texts(TEXTS, embeddings, collection_name="new", path=str(tmp_path))
    new.client.close()
    reopened = GircseQdrantVectorStore.from_existing_collection("new", embeddings, path=str(tmp_path))
    assert {document.page_content for document in reopened.similarity_search("x")} == set(TEXTS)
    reopened.client.close()


def test_from_texts_takes_the_options_of_langchains_own_store(
    embeddings: GircseEmbeddings, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = GircseQdrantVectorStore.from_texts(TEXTS, embeddings, None, None, "new", location=":memory:", batch_size=2)
    assert {document.page_content for document in store.similarity_search("x")} == set(TEXTS)
    documents = [LangChainDocument(text) for text in TEXTS]
    again = GircseQdrantVectorStore.from_documents(documents, embeddings, location=":memory:", collection_name="new")
    assert again.client.count("new").count == len(TEXTS)

    made: list[dict[str, Any]] = []

    def connect(**options: Any) -> QdrantClient:
        made.append(options)
        return QdrantClient(":memory:")

    monkeypatch.setattr("langchain_gircse.qdrant.QdrantClient", connect)
    monkeypatch.setenv("QDRANT_API_KEY", "from the environment")
    server = {"url": "https://host:6333", "api_key": "key", "prefer_grpc": True}
    GircseQdrantVectorStore.from_texts(TEXTS, embeddings, collection_name="new", **server)
    GircseQdrantVectorStore.from_texts(TEXTS, embeddings, collection_name="new", host="host", timeout=3)
    assert made[0].items() >= {**server, "timeout": 60}.items()
    assert made[1].items() >= {"host": "host", "timeout": 3, "api_key": "from the environment"}.items()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"vector_name": "dense"}, TypeError, "vector_name is fixed by the collections of gircse"),
        ({"distance": "Dot"}, TypeError, "distance is fixed"),
        ({"adress": "x"}, TypeError, "QdrantClient has no option 'adress'; it has api_key, "),
        ({"url": "http://a", "host": "b"}, QdrantVectorStoreError, "Only one of"),
    ],
)
def test_options_that_cannot_be_used_are_refused(
    embeddings: GircseEmbeddings, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        GircseQdrantVectorStore.from_texts(TEXTS, embeddings, **options)
    with pytest.raises(error, match=message):
        GircseQdrantVectorStore.from_existing_collection("docs", embeddings, **options)


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
