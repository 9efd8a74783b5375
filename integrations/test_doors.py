"""Every integration gives the same vectors, separates queries from documents, and imports no other framework."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from haystack import Document
from haystack.utils import ComponentDevice
from haystack_integrations.components.embedders.gircse import GircseDocumentEmbedder, GircseTextEmbedder
from langchain_gircse import GircseEmbeddings
from llama_index.embeddings.gircse import GircseEmbedding
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.types import PromptType
from mteb_gircse import GircseEncoder
from sentence_transformers import SentenceTransformer
from sentence_transformers_gircse import GircseModule

from gircse_rag import INSTRUCTIONS, Embedder
from gircse_rag.prompts import prefix
from integrations.fixtures import INSTRUCTION, TEXTS, RecordingBackend, imported_packages, render_query

QUERY_TEXTS = [*TEXTS, "a set has no order", "x"]


class Door(NamedTuple):
    """An integration through its users' API: texts in, vectors out. `embed_later` is asynchronous, if there is one."""

    embedder: Embedder
    documents: Callable[[list[str]], Any]
    query: Callable[[str], Any]
    embed_later: Callable[[list[str]], Coroutine[Any, Any, Any]] | None = None


def langchain(folder: str) -> Door:
    embeddings = GircseEmbeddings(model=folder, dtype="float32", device="cpu")
    return Door(
        embeddings.embedder,
        embeddings.embed_documents,
        lambda text: embeddings.embed_query(text, instruction=INSTRUCTION),
        embeddings.aembed_documents,
    )


def llama_index(folder: str) -> Door:
    embed_model = GircseEmbedding(model_name=folder, dtype="float32", device="cpu", query_instruction=INSTRUCTION)
    return Door(
        embed_model.embedder,
        embed_model.get_text_embedding_batch,
        embed_model.get_query_embedding,
        embed_model.aget_text_embedding_batch,
    )


def sentence_transformers(folder: str) -> Door:
    module = GircseModule(folder, dtype="float32", device="cpu")
    model = SentenceTransformer(modules=[module], device="cpu")
    prompt = prefix(module.embedder.spec.query_template, INSTRUCTION)
    return Door(module.embedder, model.encode_document, lambda text: model.encode_query(text, prompt=prompt))


def mteb(folder: str) -> Door:
    encoder = GircseEncoder(folder, dtype="float32", device="cpu")
    task = TaskMetadata(
        name="Local",
        description="local",
        type="Retrieval",
        prompt=INSTRUCTION,
        dataset={"path": "local", "revision": "1"},
        eval_langs=["eng-Latn"],
        main_score="ndcg_at_10",
    )

    def encode(texts: Sequence[str], side: PromptType) -> Any:
        batches = [{"text": [text]} for text in texts]  # one text per batch, unlike the engine's batches
        return encoder.encode(batches, task_metadata=task, hf_split="test", hf_subset="default", prompt_type=side)

    return Door(
        encoder.model,
        lambda texts: encode(texts, PromptType.document),
        lambda text: encode([text], PromptType.query)[0],
    )


def haystack(folder: str) -> Door:
    settings = {"model": folder, "dtype": "float32", "device": ComponentDevice.from_str("cpu")}
    documents, query = GircseDocumentEmbedder(**settings), GircseTextEmbedder(**settings)
    return Door(
        documents.embedder,
        lambda texts: [
            each.embedding for each in documents.run([Document(content=text) for text in texts])["documents"]
        ],
        lambda text: query.run(text, instruction=INSTRUCTION)["embedding"],
        lambda texts: documents.run_async([Document(content=text) for text in texts]),
    )


DOORS = [langchain, llama_index, sentence_transformers, mteb, haystack]


@pytest.fixture(params=DOORS, ids=lambda door: door.__name__)
def door(request: pytest.FixtureRequest, tiny_folder: Path) -> Door:
    return request.param(str(tiny_folder))


def test_same_batch_same_vectors(door: Door, tiny_folder: Path) -> None:
    embedder = Embedder.from_pretrained(str(tiny_folder), dtype="float32", device="cpu")
    assert door.embedder.fingerprint == embedder.fingerprint
    # Sentence Transformers sorts by length; sorted input makes its batches equal to the Embedder's.
    texts = sorted(QUERY_TEXTS, key=len, reverse=True)
    np.testing.assert_allclose(door.documents(texts), embedder.embed_documents(texts), atol=1e-6, rtol=0)
    for text in texts:
        expected = embedder.embed_queries([text], instruction=INSTRUCTION)[0]
        np.testing.assert_allclose(door.query(text), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "load",
    [
        lambda folder: GircseEmbeddings(model=folder, revision="v1"),
        lambda folder: GircseEmbedding(model_name=folder, revision="v1"),
        lambda folder: GircseModule(folder, revision="v1"),
        lambda folder: GircseDocumentEmbedder(folder, revision="v1").warm_up(),
        lambda folder: GircseTextEmbedder(folder, revision="v1").warm_up(),
    ],
)
def test_the_revision_reaches_the_embedder(load: Callable[[str], object], tiny_folder: Path) -> None:
    with pytest.raises(ValueError, match="revision 'v1' is for Hub ids"):
        load(str(tiny_folder))


@pytest.mark.parametrize(
    "load",
    [
        lambda folder: GircseEmbeddings(model=folder, device="cpu", dimensions=8).embedder,
        lambda folder: GircseEmbedding(model_name=folder, device="cpu", dimensions=8).embedder,
        lambda folder: GircseModule(folder, device="cpu", dimensions=8).embedder,
        lambda folder: GircseEncoder(folder, device="cpu", dimensions=8).model,
        lambda folder: GircseDocumentEmbedder(folder, dimensions=8).embedder,
        lambda folder: GircseTextEmbedder(folder, dimensions=8).embedder,
    ],
)
def test_every_door_shortens_vectors(load: Callable[[str], Embedder], tiny_folder: Path) -> None:
    assert load(str(tiny_folder)).embed_documents(["text"]).shape == (1, 8)


def test_queries_are_instructed_and_documents_are_not(door: Door) -> None:
    recording_backend = door.embedder.backend = RecordingBackend(door.embedder.backend, door.embedder)
    door.documents(TEXTS)
    assert sorted(recording_backend.prompts) == sorted(TEXTS)
    recording_backend.prompts.clear()
    for text in TEXTS:
        door.query(text)
    assert recording_backend.prompts == [render_query(door.embedder, text, INSTRUCTION) for text in TEXTS]


def test_a_named_instruction_stands_for_its_sentence(tiny_folder: Path) -> None:
    folder, cpu, name = str(tiny_folder), {"dtype": "float32", "device": "cpu"}, "python_code"
    expected = Embedder.from_pretrained(folder, **cpu).embed_queries(["x"], instruction=INSTRUCTIONS[name])[0]
    chain, llama = (
        GircseEmbeddings(model=folder, query_instruction=name, **cpu),
        GircseEmbedding(model_name=folder, **cpu),
    )
    stack = GircseTextEmbedder(folder, query_instruction=name, dtype="float32", device=ComponentDevice.from_str("cpu"))
    transformer = SentenceTransformer(modules=[GircseModule(folder, **cpu)], device="cpu")
    asked: list[Callable[[str], Any]] = [
        lambda name: chain.embed_query("x", instruction=name),
        lambda name: llama.get_query_embedding("x", instruction=name),
        lambda name: stack.run("x", instruction=name)["embedding"],
        lambda name: transformer.encode_query("x", prompt=name),
        lambda name: transformer.encode_query("x", prompt_name=name),
    ]
    vectors = [chain.embed_query("x"), stack.run("x")["embedding"], *(ask(name) for ask in asked)]
    for vector in vectors:
        np.testing.assert_allclose(vector, expected, atol=1e-6, rtol=0)
    for ask in asked[:3]:
        with pytest.raises(ValueError, match="did you mean 'python_code'"):
            ask("python-code")
    settings: list[Callable[[], Any]] = [
        lambda: GircseEmbeddings(model=folder, query_instruction="python-code"),
        lambda: GircseEmbedding(model_name=folder, query_instruction="python-code"),
        lambda: GircseTextEmbedder(folder, query_instruction="python-code"),
        lambda: GircseEncoder(folder, prompts={"STS": "python-code"}),
    ]
    for make in settings:
        with pytest.raises(ValueError, match="did you mean 'python_code'"):
            make()


def test_32_threads_leave_the_engine_consistent(door: Door, tiny_folder: Path) -> None:
    recording_backend = door.embedder.backend = RecordingBackend(door.embedder.backend, door.embedder)
    expected = {text: door.query(text) for text in TEXTS}
    barrier = threading.Barrier(32)

    def ask(number: int) -> bool:
        barrier.wait()
        text = TEXTS[number % len(TEXTS)]
        documents = np.asarray(door.documents([text]))
        return np.allclose(door.query(text), expected[text], atol=1e-5) and documents.shape == (1, 32)

    with ThreadPoolExecutor(32) as pool:
        assert all(pool.map(ask, range(32)))
    recording_backend.check_integrity()


@pytest.mark.parametrize("failure", ["cancelled", "loop closed", "invalid text"])
@pytest.mark.parametrize("door", [langchain, llama_index, haystack], ids=lambda door: door.__name__, indirect=True)
# When the loop closes, LlamaIndex leaves a span open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_failed_calls_leave_the_engine_consistent(failure: str, door: Door) -> None:
    assert door.embed_later is not None
    before = np.asarray(door.documents(TEXTS))
    recording_backend = door.embedder.backend = RecordingBackend(door.embedder.backend, door.embedder)
    loop = asyncio.new_event_loop()
    try:
        if failure == "invalid text":
            with pytest.raises(ValueError, match="text 1 is empty"):
                loop.run_until_complete(door.embed_later([*TEXTS[:1], ""]))
        else:
            recording_backend.gate.clear()
            task = loop.create_task(door.embed_later(QUERY_TEXTS))
            while not recording_backend.arrived.acquire(blocking=False):
                loop.run_until_complete(asyncio.sleep(0.01))
            if failure == "cancelled":
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    loop.run_until_complete(task)
    finally:
        loop.close()
        recording_backend.gate.set()
    np.testing.assert_allclose(door.documents(TEXTS), before, atol=1e-5, rtol=0)
    asyncio.run(door.embed_later(TEXTS))
    recording_backend.check_integrity()


FRAMEWORKS = {"haystack", "langchain_core", "llama_index", "mteb", "sentence_transformers"}
STORES = {"qdrant_client", "langchain_qdrant"}


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("gircse_rag", set()),
        ("gircse_rag.qdrant", {"qdrant_client"}),
        ("langchain_gircse", {"langchain_core"}),
        ("llama_index.embeddings.gircse", {"llama_index"}),
        ("sentence_transformers_gircse", {"sentence_transformers"}),
        ("mteb_gircse", {"mteb", "sentence_transformers"}),  # MTEB imports Sentence Transformers
        ("haystack_integrations.components.embedders.gircse", {"haystack"}),
    ],
)
def test_an_import_brings_no_other_framework(module: str, expected: set[str]) -> None:
    assert imported_packages(module) & (FRAMEWORKS | STORES) <= expected
