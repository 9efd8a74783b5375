from __future__ import annotations

import asyncio

import pytest
from gircse_rag import Embedder
from integrations.fixtures import INSTRUCTION, TEXTS, RecordingBackend, render_query
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.runnables import ConfigurableField
from langchain_core.vectorstores import InMemoryVectorStore
from pydantic import ValidationError

from langchain_gircse import GircseEmbeddings, GircseInvalidRequestError, GircseRetriever


@pytest.fixture
def retriever(embeddings: GircseEmbeddings, recording_backend: RecordingBackend) -> GircseRetriever:
    store = InMemoryVectorStore(embeddings)
    store.add_texts(TEXTS)
    recording_backend.prompts.clear()
    return GircseRetriever(vectorstore=store, search_kwargs={"k": 2})


@pytest.mark.parametrize("search_type", ["similarity", "mmr"])
def test_instruction_at_invoke(
    search_type: str, retriever: GircseRetriever, tiny_embedder: Embedder, recording_backend: RecordingBackend
) -> None:
    retriever = retriever.model_copy(update={"search_type": search_type})
    assert len(retriever.invoke("x")) == 2
    assert len(retriever.invoke("x", instruction=INSTRUCTION, k=1)) == 1
    assert len(asyncio.run(retriever.ainvoke("x", instruction=INSTRUCTION))) == 2
    plain, instructed = render_query(tiny_embedder, "x"), render_query(tiny_embedder, "x", INSTRUCTION)
    assert recording_backend.prompts == [plain, instructed, instructed]


def test_instruction_as_field_bind_batch_and_config(
    retriever: GircseRetriever, tiny_embedder: Embedder, recording_backend: RecordingBackend
) -> None:
    retriever.model_copy(update={"instruction": INSTRUCTION}).invoke("x")
    retriever.bind(instruction=INSTRUCTION).invoke("x")
    retriever.batch(["x"], instruction=INSTRUCTION)
    configurable = retriever.configurable_fields(instruction=ConfigurableField(id="instruction"))
    configurable.invoke("x", config={"configurable": {"instruction": INSTRUCTION}})
    assert recording_backend.prompts == [render_query(tiny_embedder, "x", INSTRUCTION)] * 4


def test_the_best_hit_has_the_highest_score(retriever: GircseRetriever, embeddings: GircseEmbeddings) -> None:
    documents = embeddings.embed_documents(TEXTS)
    query = embeddings.embed_query("a heap", instruction=INSTRUCTION)
    scores = [sum(a * b for a, b in zip(query, document, strict=True)) for document in documents]
    best = max(range(len(TEXTS)), key=scores.__getitem__)
    assert retriever.invoke("a heap", instruction=INSTRUCTION)[0].page_content == TEXTS[best]


def test_invalid_arguments(retriever: GircseRetriever) -> None:
    with pytest.raises(GircseInvalidRequestError, match="instruction is empty"):
        retriever.invoke("x", instruction=" ")
    with pytest.raises(GircseInvalidRequestError, match="text 0 is empty"):
        retriever.invoke("")
    with pytest.raises(ValidationError, match="embeds with DeterministicFakeEmbedding"):
        GircseRetriever(vectorstore=InMemoryVectorStore(DeterministicFakeEmbedding(size=3)))
    with pytest.raises(ValidationError, match="Extra inputs"):
        GircseRetriever(vectorstore=retriever.vectorstore, instructions="x")
    with pytest.raises(ValidationError, match="`score_threshold` is not specified"):
        GircseRetriever(vectorstore=retriever.vectorstore, search_type="similarity_score_threshold")
    threshold = {"search_type": "similarity_score_threshold", "search_kwargs": {"score_threshold": 0.5}}
    with pytest.raises(ValueError, match="InMemoryVectorStore has no relevance scores by vector"):
        GircseRetriever(vectorstore=retriever.vectorstore, **threshold).invoke("x")


def test_the_json_schema_can_be_made() -> None:
    schema = GircseRetriever.model_json_schema()
    assert {"instruction", "steps", "search_type", "search_kwargs"} <= schema["properties"].keys()
    assert "vectorstore" not in schema["properties"]
