"""The clients that people use get the Embedder's vectors. Each is imported by its test: the imports take seconds."""

from __future__ import annotations

from typing import Any

import httpx
import numpy as np
import pytest

from gircse_rag import Embedder
from tests.unit.serving.conftest import MODEL

pytestmark = pytest.mark.slow

TEXTS = ["a cat purrs", "the way of the world", '"quoted" text']


def assert_equal(found: Any, expected: np.ndarray[Any, Any]) -> None:
    assert np.abs(np.asarray(found, dtype=np.float32) - expected).max() < 2e-5


def test_openai(url: str, embedder: Embedder) -> None:
    import openai

    with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        documents = client.embeddings.create(model=MODEL, input=TEXTS)
        assert_equal([entry.embedding for entry in documents.data], embedder.embed_documents(TEXTS))
        asked = {"instruction": "find texts", "steps": 5}
        queries = client.embeddings.create(model=MODEL, input=TEXTS, encoding_format="float", extra_body=asked)
        assert_equal(
            [entry.embedding for entry in queries.data], embedder.embed_queries(TEXTS, instruction="find texts")
        )
        with pytest.raises(openai.BadRequestError, match="text 1 is empty"):
            client.embeddings.create(model=MODEL, input=["fine", ""])
        with pytest.raises(openai.NotFoundError, match="there is no model 'other' here"):
            client.embeddings.create(model="other", input=TEXTS)


def test_langchain(url: str, embedder: Embedder) -> None:
    from langchain_openai import OpenAIEmbeddings

    options: dict[str, Any] = {"base_url": f"{url}/v1", "api_key": "none", "model": MODEL}
    client = OpenAIEmbeddings(**options, check_embedding_ctx_length=False)
    assert_equal(client.embed_documents(TEXTS), embedder.embed_documents(TEXTS))
    asked = OpenAIEmbeddings(
        **options, check_embedding_ctx_length=False, model_kwargs={"extra_body": {"role": "query"}}
    )
    assert_equal(asked.embed_query(TEXTS[0]), embedder.embed_queries(TEXTS[:1])[0])


def test_langchain_that_would_send_token_ids_of_another_tokenizer(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import openai
    from langchain_openai import OpenAIEmbeddings

    class Encoding:
        """Stands for a tiktoken encoding, which would be downloaded."""

        def encode(self, *_: Any, **__: Any) -> list[int]:
            return [1, 2, 3]

        encode_ordinary = encode

    monkeypatch.setattr("tiktoken.encoding_for_model", lambda *_: Encoding())
    client = OpenAIEmbeddings(base_url=f"{url}/v1", api_key="none", model=MODEL)  # type: ignore[arg-type]
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
        client.embed_documents(TEXTS)


def test_llama_index(url: str, embedder: Embedder) -> None:
    from llama_index.embeddings.openai_like import OpenAILikeEmbedding

    client = OpenAILikeEmbedding(model_name=MODEL, api_base=f"{url}/v1", api_key="none")
    assert_equal(client.get_text_embedding_batch(TEXTS), embedder.embed_documents(TEXTS))
    asked = OpenAILikeEmbedding(
        model_name=MODEL, api_base=f"{url}/v1", api_key="none", additional_kwargs={"extra_body": {"role": "query"}}
    )
    assert_equal(asked.get_query_embedding(TEXTS[0]), embedder.embed_queries(TEXTS[:1])[0])


def test_haystack(url: str, embedder: Embedder) -> None:
    from haystack import Document
    from haystack.components.embedders import OpenAIDocumentEmbedder, OpenAITextEmbedder
    from haystack.utils import Secret

    options: dict[str, Any] = {"api_base_url": f"{url}/v1", "api_key": Secret.from_token("none"), "model": MODEL}
    found = OpenAIDocumentEmbedder(**options, progress_bar=False).run([Document(content=text) for text in TEXTS])
    assert_equal([document.embedding for document in found["documents"]], embedder.embed_documents(TEXTS))
    assert_equal(OpenAITextEmbedder(**options).run(TEXTS[0])["embedding"], embedder.embed_documents(TEXTS[:1])[0])


@pytest.mark.parametrize(
    ("input_type", "role"),
    [
        ("search_document", "document"),
        ("search_query", "query"),
        ("classification", "symmetric"),
        ("clustering", "symmetric"),
    ],
)
def test_cohere(url: str, embedder: Embedder, input_type: Any, role: Any) -> None:
    import cohere

    client = cohere.ClientV2(api_key="none", base_url=url)
    answer = client.embed(model=MODEL, texts=TEXTS, input_type=input_type, embedding_types=["float"])
    result = embedder.embed(TEXTS, role=role)
    assert_equal(answer.embeddings.float_, result.vectors)
    assert answer.meta is not None and answer.meta.billed_units is not None
    assert answer.meta.billed_units.input_tokens == result.prompt_tokens.sum()
    with pytest.raises(cohere.BadRequestError, match="text 0 is empty"):
        client.embed(model=MODEL, texts=[""], input_type=input_type, embedding_types=["float"])


@pytest.mark.filterwarnings("ignore::gircse_rag.errors.GircseWarning")
def test_cohere_says_which_texts_it_cut(url: str, embedder: Embedder) -> None:
    import cohere

    client = cohere.ClientV2(api_key="none", base_url=url)
    texts = ["short", "the way of the world " * 300]
    options: dict[str, Any] = {"model": MODEL, "texts": texts, "input_type": "search_document"}
    answer = client.embed(**options, embedding_types=["float"])
    assert_equal(answer.embeddings.float_, embedder.embed_documents(texts))
    assert answer.meta is not None and answer.meta.warnings == ["texts were cut at their end, at positions 1"]
    with pytest.raises(cohere.BadRequestError, match="text 1 is longer than 512 tokens"):
        client.embed(**options, embedding_types=["float"], truncate="NONE")


def test_text_embeddings_inference(http: httpx.Client, embedder: Embedder) -> None:
    assert_equal(http.post("/embed", json={"inputs": TEXTS}).json(), embedder.embed_documents(TEXTS))
    body = {"inputs": TEXTS[0], "prompt_name": "query", "normalize": True, "truncate": True}
    assert_equal(http.post("/embed", json=body).json(), embedder.embed_queries(TEXTS[:1]))
