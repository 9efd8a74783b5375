"""Cached vectors of queries, texts, instructions, steps and models are kept apart."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from gircse_rag import Embedder
from integrations.fixtures import INSTRUCTION, RecordingBackend
from llama_index.core.storage.kvstore import SimpleKVStore

from llama_index.embeddings.gircse import GircseEmbedding


@pytest.mark.parametrize("cache_set_by", ["constructor", "assignment"])
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_cached_vectors_are_not_mixed_up(
    cache_set_by: str, mode: str, tiny_embedder: Embedder, recording_backend: RecordingBackend
) -> None:
    if cache_set_by == "constructor":
        cached = GircseEmbedding(embedder=tiny_embedder, embeddings_cache=SimpleKVStore())
    else:
        cached = GircseEmbedding(embedder=tiny_embedder)
        cached.embeddings_cache = SimpleKVStore()
    plain = GircseEmbedding(embedder=tiny_embedder)
    other = cached.model_copy(update={"query_instruction": "Another"})

    def ask(model: GircseEmbedding, one: GircseEmbedding) -> list[list[float]]:
        async def main() -> list[list[float]]:
            return [
                await model.aget_query_embedding("x"),
                await model.aget_text_embedding("x"),
                (await model.aget_text_embedding_batch(["x"]))[0],
                await model.aget_query_embedding("x", instruction=INSTRUCTION),
                await one.aget_query_embedding("x"),
            ]

        if mode == "async":
            return asyncio.run(main())
        return [
            model.get_query_embedding("x"),
            model.get_text_embedding("x"),
            model.get_text_embedding_batch(["x"])[0],
            model.get_query_embedding("x", instruction=INSTRUCTION),
            one.get_query_embedding("x"),
        ]

    expected = ask(plain, plain.model_copy(update={"query_instruction": "Another"}))
    first = ask(cached, other)
    np.testing.assert_allclose(first, expected, atol=1e-5, rtol=0)
    computed = len(recording_backend.prompts)
    assert ask(cached, other) == first
    assert len(recording_backend.prompts) == computed == 5 + 4


def test_steps_and_models_are_kept_apart(tiny_folder: Path) -> None:
    store = SimpleKVStore()
    settings = {"model_name": str(tiny_folder), "dtype": "float32", "device": "cpu", "embeddings_cache": store}
    three, five = GircseEmbedding(steps=3, **settings), GircseEmbedding(steps=5, **settings)
    assert three.get_text_embedding("x") != five.get_text_embedding("x")
    with pytest.warns(match="queries take 5"):
        assert three.get_query_embedding("x", steps=5) != three.get_query_embedding("x")


def test_vectors_are_in_the_given_store(tiny_embedder: Embedder) -> None:
    store = SimpleKVStore()
    cached = GircseEmbedding(embedder=tiny_embedder, embeddings_cache=store)
    vector = cached.get_text_embedding("x")
    again = GircseEmbedding(embedder=tiny_embedder, embeddings_cache=cached.embeddings_cache)
    assert again.embeddings_cache.store is store
    assert list(again.embeddings_cache.get("x", "embeddings").values()) == [vector]
    assert list(again.embeddings_cache.get_all("embeddings")) == ["x"]
    assert cached.embeddings_cache.delete("x", "embeddings")
    assert cached.embeddings_cache.get("x", "embeddings") is None
