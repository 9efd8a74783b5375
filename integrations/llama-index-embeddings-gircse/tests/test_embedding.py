from __future__ import annotations

import asyncio
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from gircse_rag import Embedder
from integrations.fixtures import INSTRUCTION, TEXTS, RecordingBackend, render_query
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.embedding import EmbeddingEndEvent, EmbeddingStartEvent
from llama_index.core.instrumentation.span import SimpleSpan
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler
from llama_index.core.schema import TextNode
from pydantic import ValidationError

from llama_index.embeddings.gircse import GircseEmbedding


def test_class() -> None:
    assert BaseEmbedding in GircseEmbedding.__mro__
    assert GircseEmbedding.class_name() == "GircseEmbedding"


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_queries_are_instructed_and_texts_are_bare(
    mode: str, embed_model: GircseEmbedding, tiny_embedder: Embedder, recording_backend: RecordingBackend
) -> None:
    if mode == "sync":
        embed_model.get_text_embedding(TEXTS[0])
        embed_model.get_text_embedding_batch(TEXTS)
        embed_model([TextNode(text=TEXTS[0])])
        embed_model.get_query_embedding("x")
        embed_model.get_query_embedding("x", instruction=INSTRUCTION)
        embed_model.get_agg_embedding_from_queries(["x"])
    else:

        async def main() -> None:
            await embed_model.aget_text_embedding(TEXTS[0])
            await embed_model.aget_text_embedding_batch(TEXTS)
            await embed_model.acall([TextNode(text=TEXTS[0])])
            await embed_model.aget_query_embedding("x")
            await embed_model.aget_query_embedding("x", instruction=INSTRUCTION)
            await embed_model.aget_agg_embedding_from_queries(["x"])

        asyncio.run(main())
    plain = render_query(tiny_embedder, "x")
    queries = [plain, render_query(tiny_embedder, "x", INSTRUCTION), plain]
    assert recording_backend.prompts == [TEXTS[0], *TEXTS, TEXTS[0], *queries]


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"model": "x"}, "model is no option here: use model_name="),
        ({"model_kwargs": {}}, "use device= and dtype="),
        ({"batch_size": 3}, "batch_size is no option here: use embed_batch_size="),
        ({"text_instruction": "x"}, "use query_instruction=; documents take none"),
        ({"normalize": True, "max_length": 9}, "vectors always have unit length. max_length is no option here"),
    ],
)
def test_options_of_other_embeddings_name_their_replacement(options: dict[str, object], hint: str) -> None:
    with pytest.raises(ValidationError, match=hint):
        GircseEmbedding(**options)


def test_the_json_schema_can_be_made() -> None:
    schema = GircseEmbedding.model_json_schema()
    assert {"model_name", "query_instruction", "embed_batch_size"} <= schema["properties"].keys()
    assert "embedder" not in schema["properties"]


def test_vectors_are_the_embedders(embed_model: GircseEmbedding, tiny_embedder: Embedder) -> None:
    texts = tiny_embedder.embed_documents(TEXTS)
    query = tiny_embedder.embed_queries(TEXTS[:1], instruction=INSTRUCTION)[0]
    ours = embed_model.get_query_embedding(TEXTS[0], instruction=INSTRUCTION)
    np.testing.assert_allclose(embed_model.get_text_embedding_batch(TEXTS), texts, atol=1e-6, rtol=0)
    np.testing.assert_allclose(ours, query, atol=1e-6, rtol=0)
    assert np.abs(query - texts[0]).max() > 1e-2


def test_default_instruction_and_a_copy_with_another(
    embed_model: GircseEmbedding, recording_backend: RecordingBackend
) -> None:
    embed_model.query_instruction = INSTRUCTION
    other = embed_model.model_copy(update={"query_instruction": "Another"})
    embed_model.get_query_embedding("x")
    other.get_query_embedding("x")
    expected = [render_query(embed_model.embedder, "x", instruction) for instruction in (INSTRUCTION, "Another")]
    assert recording_backend.prompts == expected
    assert other.embedder is embed_model.embedder


def test_texts_are_sent_in_batches(tiny_embedder: Embedder, recording_backend: RecordingBackend) -> None:
    embed_model = GircseEmbedding(embedder=tiny_embedder, embed_batch_size=4)
    assert len(embed_model.get_text_embedding_batch([f"text {number}" for number in range(10)])) == 10
    calls = 0
    while recording_backend.arrived.acquire(blocking=False):
        calls += 1
    assert calls == 3
    assert embed_model.get_text_embedding_batch([]) == [] == asyncio.run(embed_model.aget_text_embedding_batch([]))


def test_steps(tiny_folder: Path) -> None:
    embed_model = GircseEmbedding(model_name=str(tiny_folder), steps=3, dtype="float32", device="cpu")
    assert embed_model.embedder.spec.document_steps == 3
    with pytest.warns(match="3"):
        eight = embed_model.get_query_embedding("x", steps=8)
    assert np.abs(np.subtract(eight, embed_model.get_query_embedding("x"))).max() > 1e-4


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"steps": 0}, "steps must be an integer from 1"),
        ({"dtype": "int8"}, "dtype 'int8' does not exist"),
        ({"query_instruction": " "}, "empty or white space"),
        ({"instruction": "x"}, "instruction is no option here: use query_instruction="),
        ({"temperature": 1}, "Extra inputs are not permitted"),
        ({"embeddings_cache": 3}, "embeddings_cache must be of type BaseKVStore"),
    ],
)
def test_invalid_fields(field: dict[str, object], message: str, tiny_folder: Path) -> None:
    with pytest.raises((ValidationError, TypeError), match=message):
        GircseEmbedding(model_name=str(tiny_folder), **field)


def test_fields_fixed_by_a_given_embedder(
    embed_model: GircseEmbedding, tiny_embedder: Embedder, tmp_path: Path
) -> None:
    with pytest.raises(ValidationError, match="embedder already determines dtype, steps"):
        GircseEmbedding(embedder=tiny_embedder, steps=3, dtype="float32")
    with pytest.raises(ValidationError, match="frozen"):
        embed_model.steps = 3
    with pytest.raises(ValidationError, match="nothing-here"):
        GircseEmbedding(model_name=str(tmp_path / "nothing-here"))


@pytest.mark.parametrize("bad", ["", " \n", "\ud800", "a\x00b", 7])
def test_invalid_texts(
    bad: object, embed_model: GircseEmbedding, tiny_embedder: Embedder, recording_backend: RecordingBackend
) -> None:
    with pytest.raises(ValueError) as ours:
        tiny_embedder.embed_documents(["good", bad])
    for call in (
        lambda: embed_model.get_text_embedding_batch(["good", bad]),
        lambda: asyncio.run(embed_model.aget_text_embedding_batch(["good", bad])),
    ):
        with pytest.raises(ValueError) as theirs:
            call()
        assert (str(theirs.value), theirs.value.index) == (str(ours.value), 1)
    with pytest.raises(ValueError):
        embed_model.get_query_embedding(bad)
    with pytest.raises(ValueError, match="instruction is empty"):
        embed_model.get_query_embedding("x", instruction=" ")
    assert recording_backend.prompts == []


def test_the_event_loop_is_not_blocked(embed_model: GircseEmbedding, recording_backend: RecordingBackend) -> None:
    async def main(method: str, argument: object) -> object:
        recording_backend.gate.clear()
        task = asyncio.create_task(getattr(embed_model, method)(argument))
        while not recording_backend.arrived.acquire(blocking=False):
            await asyncio.sleep(0)
        assert not task.done()
        recording_backend.gate.set()
        return await task

    for method, argument in [
        ("aget_query_embedding", "x"),
        ("aget_text_embedding", "x"),
        ("aget_text_embedding_batch", TEXTS),
    ]:
        expected = getattr(embed_model, method.removeprefix("a"))(argument)
        while recording_backend.arrived.acquire(blocking=False):
            pass
        np.testing.assert_allclose(asyncio.run(main(method, argument)), expected, atol=1e-5, rtol=0)
        while recording_backend.arrived.acquire(blocking=False):
            pass


def test_cancelled(tiny_embedder: Embedder, recording_backend: RecordingBackend) -> None:
    embed_model = GircseEmbedding(embedder=tiny_embedder, embed_batch_size=2, num_workers=2)
    texts = [f"text {number}" for number in range(40)]

    async def main() -> None:
        recording_backend.gate.clear()
        task = asyncio.create_task(embed_model.aget_text_embedding_batch(texts))
        while not recording_backend.arrived.acquire(blocking=False):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        recording_backend.gate.set()

    asyncio.run(main())
    assert len(recording_backend.prompts) < len(texts)
    vectors = asyncio.run(embed_model.aget_text_embedding_batch(texts))
    np.testing.assert_allclose(vectors, tiny_embedder.embed_documents(texts), atol=1e-6, rtol=0)


def test_32_threads_with_their_own_instructions(embed_model: GircseEmbedding) -> None:
    instructions = [f"Instruction {number % 3}" for number in range(32)]
    expected = {each: embed_model.get_query_embedding("x", instruction=each) for each in instructions}
    barrier = threading.Barrier(32)

    def ask(instruction: str) -> bool:
        barrier.wait()
        return np.allclose(embed_model.get_query_embedding("x", instruction), expected[instruction], atol=1e-6, rtol=0)

    with ThreadPoolExecutor(32) as pool:
        assert all(pool.map(ask, instructions))


def test_callbacks_and_spans_are_reported_once(embed_model: GircseEmbedding) -> None:
    debug = LlamaDebugHandler(print_trace_on_end=False)
    embed_model.callback_manager = CallbackManager([debug])
    spans: SimpleSpanHandler = SimpleSpanHandler()
    events: list[object] = []

    class Events(BaseEventHandler):
        def handle(self, event: object, **kwargs: object) -> None:
            events.append(event)

    dispatcher = get_dispatcher()
    dispatcher.add_span_handler(spans)
    dispatcher.add_event_handler(Events())
    try:
        vector = embed_model.get_query_embedding("x", instruction=INSTRUCTION)
    finally:
        dispatcher.span_handlers.remove(spans)
        dispatcher.event_handlers.pop()
    names = [span.id_.partition("-")[0] for span in spans.completed_spans if isinstance(span, SimpleSpan)]
    assert sorted(names) == ["GircseEmbedding._get_query_embedding", "GircseEmbedding.get_query_embedding"]
    assert [type(event) for event in events] == [EmbeddingStartEvent, EmbeddingEndEvent]
    assert events[1].embeddings == [vector]
    assert len(debug.get_event_pairs(CBEventType.EMBEDDING)) == 1


def test_serialisation(embed_model: GircseEmbedding, tiny_folder: Path) -> None:
    loaded = GircseEmbedding(
        model_name=str(tiny_folder), query_instruction=INSTRUCTION, steps=3, dtype="float32", device="cpu"
    )
    vector = loaded.get_query_embedding("x")
    for copy in (GircseEmbedding.from_dict(loaded.to_dict()), pickle.loads(pickle.dumps(loaded))):
        np.testing.assert_allclose(copy.get_query_embedding("x"), vector, atol=1e-5, rtol=0)
    np.testing.assert_allclose(loaded.get_query_embedding("x"), vector, atol=1e-5, rtol=0)
