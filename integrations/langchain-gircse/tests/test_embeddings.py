from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from gircse_rag import Embedder
from integrations.fixtures import INSTRUCTION, TEXTS, RecordingBackend, render_query
from langchain_core.exceptions import ModelInvalidRequestError
from pydantic import ValidationError

from langchain_gircse import GircseEmbeddings, GircseInvalidRequestError


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_queries_are_instructed_and_documents_are_bare(
    mode: str, embeddings: GircseEmbeddings, tiny_embedder: Embedder, recording_backend: RecordingBackend
) -> None:
    if mode == "sync":
        embeddings.embed_documents(TEXTS)
        embeddings.embed_query(TEXTS[0])
        embeddings.embed_query(TEXTS[0], instruction=INSTRUCTION)
    else:
        asyncio.run(embeddings.aembed_documents(TEXTS))
        asyncio.run(embeddings.aembed_query(TEXTS[0]))
        asyncio.run(embeddings.aembed_query(TEXTS[0], instruction=INSTRUCTION))
    queries = [render_query(tiny_embedder, TEXTS[0]), render_query(tiny_embedder, TEXTS[0], INSTRUCTION)]
    assert recording_backend.prompts == [*TEXTS, *queries]


def test_vectors_are_the_embedders(embeddings: GircseEmbeddings, tiny_embedder: Embedder) -> None:
    documents = tiny_embedder.embed_documents(TEXTS)
    query = tiny_embedder.embed_queries(TEXTS[:1], instruction=INSTRUCTION)[0]
    np.testing.assert_allclose(embeddings.embed_documents(TEXTS), documents, atol=1e-6, rtol=0)
    np.testing.assert_allclose(embeddings.embed_query(TEXTS[0], instruction=INSTRUCTION), query, atol=1e-6, rtol=0)
    assert np.abs(query - documents[0]).max() > 1e-2


def test_call_instruction_overrides_the_default(tiny_embedder: Embedder, recording_backend: RecordingBackend) -> None:
    embeddings = GircseEmbeddings(embedder=tiny_embedder, query_instruction=INSTRUCTION)
    embeddings.embed_query("x")
    embeddings.embed_query("x", instruction="Another")
    assert recording_backend.prompts == [
        render_query(tiny_embedder, "x", INSTRUCTION),
        render_query(tiny_embedder, "x", "Another"),
    ]


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"model_kwargs": {"device": "cpu"}}, "model_kwargs is no option here: use device= and dtype="),
        (
            {"encode_kwargs": {}, "cache_folder": "x"},
            "use batch_size=; vectors always have unit length. cache_folder is no option here: set HF_HOME",
        ),
        ({"show_progress_bar": True}, "show_progress_bar is no option here: use show_progress="),
        ({"instruction": "x"}, "instruction is no option here: use query_instruction="),
        ({"trust_remote_code": True}, "remote code is never run"),
    ],
)
def test_options_of_other_embeddings_name_their_replacement(options: dict[str, object], hint: str) -> None:
    with pytest.raises(ValidationError, match=hint):
        GircseEmbeddings(model="no-such-model", **options)


def test_progress_is_shown_on_request(
    tiny_embedder: Embedder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes stderr for a terminal
    monkeypatch.setenv("COLUMNS", "100")
    GircseEmbeddings(embedder=tiny_embedder).embed_documents(TEXTS)
    assert capsys.readouterr().err == ""
    GircseEmbeddings(embedder=tiny_embedder, show_progress=True).embed_documents(TEXTS)
    assert "3/3" in capsys.readouterr().err


def test_the_json_schema_can_be_made() -> None:
    schema = GircseEmbeddings.model_json_schema()
    assert {"model", "query_instruction", "batch_size", "show_progress"} <= schema["properties"].keys()
    assert "embedder" not in schema["properties"]


def test_steps(tiny_folder: Path) -> None:
    embeddings = GircseEmbeddings(model=str(tiny_folder), steps=3, dtype="float32", device="cpu")
    assert embeddings.embedder.spec.document_steps == 3
    with pytest.warns(match="3"):
        eight = embeddings.embed_query("x", steps=8)
    assert np.abs(np.subtract(eight, embeddings.embed_query("x"))).max() > 1e-4
    with pytest.raises(GircseInvalidRequestError, match="steps must be"):
        embeddings.embed_query("x", steps=0)


def test_model_alias_and_unknown_fields(tiny_folder: Path, tiny_embedder: Embedder) -> None:
    for name in ("model", "model_name"):
        assert GircseEmbeddings(**{name: str(tiny_folder)}).model_name == str(tiny_folder)
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        GircseEmbeddings(model=str(tiny_folder), temperature=1)
    with pytest.raises(ValidationError, match="embedder already determines dtype, model_name"):
        GircseEmbeddings(embedder=tiny_embedder, model="x", dtype="float32")


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"steps": 0}, "steps must be an integer from 1"),
        ({"dtype": "int8"}, "dtype 'int8' does not exist"),
        ({"device": "abacus"}, "device 'abacus' is not usable"),
        ({"query_instruction": " "}, "empty or white space"),
        ({"batch_size": 0}, "greater than or equal to 1"),
    ],
)
def test_invalid_fields(field: dict[str, object], message: str, tiny_folder: Path) -> None:
    with pytest.raises(ValidationError, match=message):
        GircseEmbeddings(model=str(tiny_folder), **field)


def test_missing_model(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="nothing-here"):
        GircseEmbeddings(model=str(tmp_path / "nothing-here"))


@pytest.mark.parametrize("bad", ["", " \n", "\ud800", "a\x00b", 7, None])
def test_invalid_texts(
    bad: object, embeddings: GircseEmbeddings, tiny_embedder: Embedder, recording_backend: RecordingBackend
) -> None:
    with pytest.raises(ValueError) as ours:
        tiny_embedder.embed_documents(["good", bad])
    small = embeddings.model_copy(update={"batch_size": 1})
    for call in (
        lambda: embeddings.embed_documents(["good", bad]),
        lambda: asyncio.run(embeddings.aembed_documents(["good", bad])),
        lambda: asyncio.run(small.aembed_documents(["good", bad])),
    ):
        with pytest.raises(ModelInvalidRequestError) as theirs:
            call()
        assert (str(theirs.value), theirs.value.index) == (str(ours.value), 1)
        assert isinstance(theirs.value, ValueError)
    with pytest.raises(ModelInvalidRequestError):
        embeddings.embed_query(bad)
    assert recording_backend.prompts == []


def test_a_string_instead_of_a_list(embeddings: GircseEmbeddings) -> None:
    for call in (embeddings.embed_documents, lambda text: asyncio.run(embeddings.aembed_documents(text))):
        with pytest.raises(ModelInvalidRequestError, match="single string"):
            call("a text")


def test_no_documents(embeddings: GircseEmbeddings) -> None:
    assert embeddings.embed_documents([]) == []
    assert asyncio.run(embeddings.aembed_documents([])) == []


def test_the_event_loop_is_not_blocked(embeddings: GircseEmbeddings, recording_backend: RecordingBackend) -> None:
    async def main() -> list[float]:
        recording_backend.gate.clear()
        task = asyncio.create_task(embeddings.aembed_query("x"))
        while not recording_backend.arrived.acquire(blocking=False):
            await asyncio.sleep(0)
        assert not task.done()
        recording_backend.gate.set()
        return await task

    for _ in range(2):  # the second round uses a new event loop
        vector = asyncio.run(main())
        recording_backend.arrived = threading.Semaphore(0)
        np.testing.assert_allclose(vector, embeddings.embed_query("x"), atol=1e-5, rtol=0)
        recording_backend.arrived = threading.Semaphore(0)


def test_cancelled_between_batches(tiny_embedder: Embedder, recording_backend: RecordingBackend) -> None:
    embeddings = GircseEmbeddings(embedder=tiny_embedder, batch_size=2)
    texts = [f"text {number}" for number in range(8)]

    async def main() -> None:
        recording_backend.gate.clear()
        task = asyncio.create_task(embeddings.aembed_documents(texts))
        while not recording_backend.arrived.acquire(blocking=False):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        recording_backend.gate.set()

    asyncio.run(main())
    assert recording_backend.prompts == texts[:2]
    vectors = asyncio.run(embeddings.aembed_documents(texts))
    np.testing.assert_allclose(vectors, tiny_embedder.embed_documents(texts), atol=1e-6, rtol=0)


def test_32_threads_at_once(embeddings: GircseEmbeddings) -> None:
    expected = {text: embeddings.embed_query(text) for text in TEXTS}
    barrier = threading.Barrier(32)

    def ask(number: int) -> bool:
        barrier.wait()
        text = TEXTS[number % len(TEXTS)]
        return np.allclose(embeddings.embed_query(text), expected[text], atol=1e-6, rtol=0)

    with ThreadPoolExecutor(32) as pool:
        assert all(pool.map(ask, range(32)))
