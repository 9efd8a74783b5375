from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gircse_rag import Embedder
from haystack import Document, Pipeline
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack.utils import ComponentDevice
from integrations.fixtures import INSTRUCTION, ROOT, TEXTS, RecordingBackend, render_query, run_page

from haystack_integrations.components.embedders.gircse import GircseDocumentEmbedder, GircseTextEmbedder

DOCUMENTS = [Document(content=text, meta={"number": number}) for number, text in enumerate(TEXTS)]


@pytest.fixture
def settings(tiny_folder: Path) -> dict[str, Any]:
    return {"model": str(tiny_folder), "dtype": "float32", "device": ComponentDevice.from_str("cpu")}


@pytest.fixture
def text_embedder(settings: dict[str, Any]) -> GircseTextEmbedder:
    return GircseTextEmbedder(**settings)


@pytest.fixture
def document_embedder(settings: dict[str, Any]) -> GircseDocumentEmbedder:
    return GircseDocumentEmbedder(**settings)


@pytest.mark.parametrize("kind", [GircseDocumentEmbedder, GircseTextEmbedder])
def test_options_of_other_embedders_name_their_replacement(kind: Any) -> None:
    for options, hint in (
        ({"model_kwargs": {}}, "model_kwargs is no option here: use dtype= and device=|use device= and dtype="),
        ({"normalize_embeddings": True}, f"{kind.__name__}: .*vectors always have unit length"),
        ({"colour": "red"}, r"unexpected keyword arguments \['colour'\]"),
    ):
        with pytest.raises(TypeError, match=hint):
            kind(**options)
    assert "other" not in kind().to_dict()["init_parameters"]


def test_progress_is_shown_on_request(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes stderr for a terminal
    monkeypatch.setenv("COLUMNS", "100")
    GircseDocumentEmbedder(**settings).run(DOCUMENTS)
    assert capsys.readouterr().err == ""
    GircseDocumentEmbedder(**settings, progress_bar=True).run(DOCUMENTS)
    assert "3/3" in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_queries_are_instructed_and_documents_are_bare(
    mode: str,
    text_embedder: GircseTextEmbedder,
    document_embedder: GircseDocumentEmbedder,
    tiny_embedder: Embedder,
) -> None:
    shared = text_embedder.embedder
    assert document_embedder.embedder is shared  # both components share one model
    recording_backend = shared.backend = RecordingBackend(shared.backend, shared)
    for component, arguments in [
        (document_embedder, {"documents": DOCUMENTS}),
        (text_embedder, {"text": "x"}),
        (text_embedder, {"text": "x", "instruction": INSTRUCTION}),
    ]:
        if mode == "sync":
            component.run(**arguments)
        else:
            asyncio.run(component.run_async(**arguments))
    assert recording_backend.prompts == [
        *TEXTS,
        render_query(tiny_embedder, "x"),
        render_query(tiny_embedder, "x", INSTRUCTION),
    ]


def test_vectors_are_the_embedders(
    text_embedder: GircseTextEmbedder, document_embedder: GircseDocumentEmbedder, tiny_embedder: Embedder
) -> None:
    ours = document_embedder.run(DOCUMENTS)
    theirs = tiny_embedder.embed_documents(TEXTS)
    np.testing.assert_allclose([document.embedding for document in ours["documents"]], theirs, atol=1e-6, rtol=0)
    assert [document.meta for document in ours["documents"]] == [document.meta for document in DOCUMENTS]
    assert all(document.embedding is None for document in DOCUMENTS)
    query = text_embedder.run("x", instruction=INSTRUCTION)
    expected = tiny_embedder.embed(["x"], role="query", instruction=INSTRUCTION)
    np.testing.assert_allclose(query["embedding"], expected.vectors[0], atol=1e-6, rtol=0)
    assert query["meta"] == {
        "model": text_embedder.model,
        "fingerprint": tiny_embedder.fingerprint,
        "usage": {"prompt_tokens": int(expected.prompt_tokens.sum())},
    }


def test_meta_fields_to_embed(settings: dict[str, Any], tiny_embedder: Embedder) -> None:
    embedder = GircseDocumentEmbedder(**settings, meta_fields_to_embed=["title", "nothing"], embedding_separator=" | ")
    (ours,) = embedder.run([Document(content="text", meta={"title": "Title"})])["documents"]
    np.testing.assert_allclose(ours.embedding, tiny_embedder.embed_documents(["Title | text"])[0], atol=1e-6, rtol=0)


def test_no_documents(document_embedder: GircseDocumentEmbedder) -> None:
    assert document_embedder.run([])["documents"] == []


@pytest.mark.parametrize("bad", [None, "", " \n", "a\x00b"])
def test_invalid_documents(bad: str | None, document_embedder: GircseDocumentEmbedder) -> None:
    with pytest.raises(ValueError, match=r"text 1 (is empty|holds)"):
        document_embedder.run([Document(content="good"), Document(content=bad)])


def test_invalid_input(
    text_embedder: GircseTextEmbedder, document_embedder: GircseDocumentEmbedder, settings: dict[str, Any]
) -> None:
    with pytest.raises(TypeError, match="please use the GircseDocumentEmbedder"):
        text_embedder.run(DOCUMENTS)
    for wrong in ("a text", ["a text"]):
        with pytest.raises(TypeError, match="please use the GircseTextEmbedder"):
            document_embedder.run(wrong)
    for bad in ("", " \n", "a\x00b", "\ud800"):
        with pytest.raises(ValueError, match=r"text 0 (is empty|holds)"):
            text_embedder.run(bad)
    with pytest.raises(ValueError, match="instruction is empty"):
        text_embedder.run("x", instruction=" ")
    with pytest.raises(ValueError, match="is empty"):
        GircseTextEmbedder(query_instruction="")
    with pytest.raises(ValueError, match="steps must be"):
        GircseTextEmbedder(**settings, steps=0).warm_up()
    with pytest.raises(ValueError, match="no model 'nothing'"):
        GircseDocumentEmbedder(model="nothing").warm_up()
    with pytest.raises(TypeError, match="unexpected keyword"):
        GircseDocumentEmbedder(instruction="x")


def test_serialisation(settings: dict[str, Any]) -> None:
    for component in (
        GircseTextEmbedder(**settings, query_instruction=INSTRUCTION, steps=3),
        GircseDocumentEmbedder(**settings, steps=3, meta_fields_to_embed=["title"], embedding_separator=" "),
    ):
        again = type(component).from_dict(component.to_dict())
        assert again.to_dict() == component.to_dict()
        assert again.embedder is component.embedder


def test_pipeline_saved_and_loaded(
    text_embedder: GircseTextEmbedder, document_embedder: GircseDocumentEmbedder, tiny_embedder: Embedder
) -> None:
    store = InMemoryDocumentStore(embedding_similarity_function="cosine")
    store.write_documents(document_embedder.run(DOCUMENTS)["documents"])
    pipeline = Pipeline()
    pipeline.add_component("embedder", text_embedder)
    pipeline.add_component("retriever", InMemoryEmbeddingRetriever(store))
    pipeline.connect("embedder.embedding", "retriever.query_embedding")
    question = {"embedder": {"text": "heap", "instruction": INSTRUCTION}}
    found = pipeline.run(question)["retriever"]["documents"]
    query = tiny_embedder.embed_queries(["heap"], instruction=INSTRUCTION)[0]
    best = int(np.argmax(tiny_embedder.embed_documents(TEXTS) @ query))
    assert found[0].content == TEXTS[best]
    loaded = Pipeline.loads(pipeline.dumps())
    assert loaded.get_component("embedder").to_dict() == text_embedder.to_dict()


def test_the_event_loop_is_not_blocked(text_embedder: GircseTextEmbedder) -> None:
    embedder = text_embedder.embedder
    recording_backend = embedder.backend = RecordingBackend(embedder.backend, embedder)
    recording_backend.gate.clear()

    async def main() -> dict[str, Any]:
        task = asyncio.create_task(text_embedder.run_async("x"))
        while not recording_backend.arrived.acquire(blocking=False):
            await asyncio.sleep(0)
        assert not task.done()
        recording_backend.gate.set()
        return await task

    ours, theirs = asyncio.run(main()), text_embedder.run("x")
    np.testing.assert_allclose(ours["embedding"], theirs["embedding"], atol=1e-5, rtol=0)


@pytest.mark.model
def test_readme_runs_as_written(tmp_path: Path) -> None:
    assert run_page(Path(__file__).parents[1] / "README.md", tmp_path) == "576 576\n"


@pytest.mark.model
def test_page_runs_as_written(tmp_path: Path) -> None:
    printed = run_page(ROOT / "docs/guides/integrations/haystack.md", tmp_path)
    assert printed.count(".txt") == 4
