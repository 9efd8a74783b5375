"""Hybrid search gives the same answers through every door."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from haystack import Document as HaystackDocument
from haystack.document_stores.errors import DocumentStoreError
from haystack.utils import ComponentDevice
from haystack_integrations.components.embedders.gircse import GircseDocumentEmbedder, GircseTextEmbedder
from haystack_integrations.components.retrievers.gircse import GircseQdrantHybridRetriever
from haystack_integrations.document_stores.gircse import GircseQdrantDocumentStore as HaystackStore
from langchain_gircse import GircseEmbeddings
from langchain_gircse.qdrant import GircseQdrantVectorStore as LangChainStore
from langchain_qdrant import RetrievalMode
from langchain_qdrant.qdrant import QdrantVectorStoreError
from llama_index.core import Document as LlamaDocument
from llama_index.core import VectorStoreIndex
from llama_index.embeddings.gircse import GircseEmbedding
from llama_index.embeddings.gircse.qdrant import GircseQdrantVectorStore as LlamaStore
from qdrant_client import QdrantClient, models

from gircse_rag import Embedder
from gircse_rag.cli import main
from gircse_rag.qdrant import Document, ingest, search

TEXTS = {
    "kernel": "error E4711 means that the kernel cannot mount its root file system",
    "mount": "mounting a file system needs the mount command and a device",
    "root": "the root of a plant grows into the ground",
    "codes": "error codes E1 to E99 are explained in the manual",
}
QUESTIONS = ["what does error E4711 mean?", "plants in the ground", "mounted systems", "what is it?"]
Answers = list[tuple[str, float]]


class Doors:
    """One collection, behind every door. Each method answers a question with (text, score), best first."""

    def __init__(self, folder: Path, model: Path) -> None:
        settings: dict[str, Any] = {"model": str(model), "dtype": "float32", "device": ComponentDevice.from_str("cpu")}
        self.haystack = HaystackStore("c", GircseDocumentEmbedder(**settings), path=str(folder / "store"))
        self.client: QdrantClient = self.haystack.client
        self.embedder: Embedder = self.haystack.embedder.embedder
        self.text_embedder = GircseTextEmbedder(**settings)
        self.langchain = LangChainStore(
            self.client, "c", GircseEmbeddings(embedder=self.embedder), RetrievalMode.HYBRID
        )
        self.embed_model = GircseEmbedding(embedder=self.embedder)
        self.index = VectorStoreIndex.from_vector_store(
            LlamaStore("c", self.client, self.embed_model), embed_model=self.embed_model
        )

    def fill(self, writer: str) -> None:
        if writer == "gircse":
            documents = [Document(name, text) for name, text in TEXTS.items()]
            ingest(documents, collection="c", embedder=self.embedder, client=self.client)
        elif writer == "langchain":
            self.langchain.add_texts(list(TEXTS.values()), ids=list(TEXTS))
        elif writer == "llama_index":
            for name, text in TEXTS.items():
                self.index.insert(LlamaDocument(text=text, id_=name))
        else:
            self.haystack.write_documents([HaystackDocument(id=name, content=text) for name, text in TEXTS.items()])

    def through_search(self, question: str) -> Answers:
        hits = search(question, collection="c", embedder=self.embedder, client=self.client, mode="hybrid", limit=3)
        return [(hit.text, hit.score) for hit in hits]

    def through_langchain(self, question: str) -> Answers:
        found = self.langchain.similarity_search_with_score(question, k=3)
        return [(document.page_content, score) for document, score in found]

    def through_llama_index(self, question: str) -> Answers:
        retriever = self.index.as_retriever(vector_store_query_mode="hybrid", similarity_top_k=3)
        return [(node.text, node.score) for node in retriever.retrieve(question)]

    def through_haystack(self, question: str) -> Answers:
        vector = self.text_embedder.run(question)["embedding"]
        retriever = GircseQdrantHybridRetriever(self.haystack, top_k=3)
        found = retriever.run(query=question, query_embedding=vector)["documents"]
        return [(document.content, document.score) for document in found]


@pytest.fixture
def doors(tiny_folder: Path, tmp_path: Path) -> Iterator[Doors]:
    doors = Doors(tmp_path, tiny_folder)
    yield doors
    doors.client.close()


@pytest.mark.parametrize("writer", ["gircse", "langchain", "llama_index", "haystack"])
def test_every_door_gives_the_answers_of_search(doors: Doors, writer: str) -> None:
    doors.fill(writer)
    for question in QUESTIONS:
        expected = doors.through_search(question)
        assert len(expected) == 3
        if "E4711" in question:
            assert expected[0][0] == TEXTS["kernel"]
        for door in (doors.through_langchain, doors.through_llama_index, doors.through_haystack):
            answers = door(question)
            assert [text for text, _ in answers] == [text for text, _ in expected], (door.__name__, question)
            if question != "what is it?":  # LlamaIndex gives cosines for a question without terms
                assert [score for _, score in answers] == pytest.approx([score for _, score in expected], abs=1e-5)


def test_the_command_line_gives_the_answers_of_search(
    doors: Doors, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    doors.fill("gircse")
    expected = doors.through_search(QUESTIONS[0])
    doors.client.close()
    options = ["--model", str(tiny_folder), "--dtype", "float32", "--device", "cpu"]
    with pytest.raises(SystemExit) as exit_:
        main(
            [
                "search",
                QUESTIONS[0],
                "--collection",
                "c",
                "--path",
                str(tmp_path / "store"),
                "--limit",
                "3",
                "--json",
                *options,
            ]
        )
    assert not exit_.value.code
    hits = json.loads(capsys.readouterr().out)["hits"]
    assert [hit["text"] for hit in hits] == [text for text, _ in expected]
    assert [hit["score"] for hit in hits] == pytest.approx([score for _, score in expected], abs=1e-5)


def test_words_alone_and_filters(doors: Doors) -> None:
    doors.fill("gircse")
    words = LangChainStore(doors.client, "c", doors.langchain.embeddings, RetrievalMode.SPARSE)
    assert [each.page_content for each in words.similarity_search("E4711")] == [TEXTS["kernel"]]
    retriever = doors.index.as_retriever(vector_store_query_mode="sparse", similarity_top_k=3)
    assert [node.text for node in retriever.retrieve("E4711")] == [TEXTS["kernel"]]
    assert retriever.retrieve("what is it?") == []
    source = models.FieldCondition(key="metadata.source", match=models.MatchValue(value="codes"))
    found = doors.langchain.similarity_search(QUESTIONS[0], filter=models.Filter(must=[source]))
    assert [document.page_content for document in found] == [TEXTS["codes"]]
    assert doors.langchain.as_retriever().invoke("error E4711")[0].page_content == TEXTS["kernel"]


@pytest.fixture
def old(doors: Doors) -> Doors:
    """The collection as an earlier version made it."""
    doors.client.delete_collection("c")
    spec = doors.embedder.spec
    params = models.VectorParams(size=spec.dimension, distance=models.Distance.COSINE)
    stamp = {"fingerprint": spec.fingerprint, "spec": spec.to_dict()}
    doors.client.create_collection("c", {"gircse": params}, metadata={"gircse": stamp})
    return doors


def _reopen(doors: Doors) -> list[tuple[type[Exception], Callable[[], Any]]]:
    def haystack() -> Any:
        doors.haystack._encoder = None
        return doors.through_haystack("x")

    def llama_index() -> Any:
        store = LlamaStore("c", doors.client, doors.embed_model)
        index = VectorStoreIndex.from_vector_store(store, embed_model=doors.embed_model)
        return index.as_retriever(vector_store_query_mode="hybrid").retrieve("x")

    def langchain() -> Any:
        return LangChainStore(doors.client, "c", doors.langchain.embeddings, RetrievalMode.HYBRID)

    return [(DocumentStoreError, haystack), (ValueError, llama_index), (QdrantVectorStoreError, langchain)]


def test_an_old_collection_gets_the_same_message_everywhere(old: Doors) -> None:
    for error, door in _reopen(old):
        with pytest.raises(error, match=r"has no lexical vector.*gircse migrate c --add-lexical"):
            door()
