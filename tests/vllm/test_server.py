"""`gircse serve` gives the OpenAI client, plain HTTP and Embedder(url=...) the same vectors."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from gircse_rag import Embedder
from gircse_rag.errors import GircseError, InputError, SpecMismatchError
from tests import tiny
from tests.vllm.engines import assert_same, plain_folder
from tests.vllm.servers import serve

pytestmark = pytest.mark.filterwarnings("ignore::gircse_rag.errors.GircseWarning")
TEXTS = ['"Quoted" it is', "-> x", "the way of the world " * 9, "(note)", "'s"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plain_folder(tmp_path_factory.mktemp("served") / "plain")


@pytest.fixture(scope="module")
def url(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serve(folder, tmp_path_factory.mktemp("log")) as address:
        yield address


@pytest.fixture(scope="module")
def local(folder: Path) -> Embedder:
    return Embedder.from_pretrained(str(folder), backend="reference", dtype="float32")


@pytest.fixture
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def vectors(response: Any) -> list[np.ndarray]:
    return [np.array(entry.embedding, dtype=np.float32) for entry in response.data]


def test_the_openai_client_gets_the_same_vectors(client: openai.OpenAI, folder: Path, local: Embedder) -> None:
    name = client.models.list().data[0].id
    assert name == str(folder)
    documents = client.embeddings.create(model=name, input=TEXTS)
    assert_same(vectors(documents), list(local.embed_documents(TEXTS)))
    queries = client.embeddings.create(model=name, input=TEXTS, extra_body={"instruction": "find texts", "steps": 7})
    assert_same(vectors(queries), list(local.embed_queries(TEXTS, instruction="find texts", steps=7)))
    symmetric = client.embeddings.create(model=name, input=TEXTS[0], extra_body={"role": "symmetric"})
    assert_same(vectors(symmetric), list(local.embed(TEXTS[:1], role="symmetric").vectors))


def test_inputs_may_have_different_steps_and_usage_counts_real_tokens(client: openai.OpenAI, local: Embedder) -> None:
    steps = [1, 20, 5, 3, 1]
    response = client.embeddings.create(
        model=client.models.list().data[0].id, input=TEXTS, extra_body={"role": "query", "steps": steps}
    )
    expected = local.embed(TEXTS, steps=steps)
    assert_same(vectors(response), list(expected.vectors))
    assert response.usage.prompt_tokens == expected.prompt_tokens.sum() == response.usage.total_tokens


@pytest.mark.parametrize(
    "extra, message",
    [
        ({"steps": 0}, "steps must be an integer from 1"),
        ({"steps": [1, 2]}, "steps has 2 entries for 1 inputs"),
        ({"steps": 256, "input": "world " * 400, "truncate_prompt_tokens": -1}, "do not fit max_model_len 600"),
        ({"role": "document", "instruction": "find"}, "a document takes no instruction"),
        ({"role": "poet"}, "role 'poet' does not exist"),
        ({"instruction": " "}, "instruction is empty"),
        ({"instruction": "a\x00b"}, "the instruction holds the control character"),
        ({"input": ["good", " "]}, "text 1 is empty or white space"),
        ({"input": "world " * 600}, "text 0 is longer than 512 tokens"),
        ({"input": [[1, 2]], "role": "query"}, "role and instruction are for texts"),
        ({"input": [[1, 2]]}, "perhaps of another tokenizer.*check_embedding_ctx_length=False"),
        ({"input": [1, 2], "tokenizer": "another"}, "perhaps of another tokenizer.*--accept-token-ids"),
        ({"instruction": "python-code"}, "did you mean 'python_code'"),
        ({"dimensions": 8}, "does not support Matryoshka"),
    ],
)
def test_bad_requests_are_explained(url: str, extra: dict[str, Any], message: str) -> None:
    response = httpx.post(f"{url}/v1/embeddings", json={"input": "a text", **extra})
    assert response.status_code == 400
    assert re.search(message, response.json()["error"]["message"])


def test_token_ids_are_accepted_from_a_client_that_names_the_tokenizer(url: str, local: Embedder) -> None:
    ids = [local.tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    tokenizer = httpx.get(f"{url}/v1/gircse").json()["spec"]["tokenizer_hash"]
    found = httpx.post(f"{url}/v1/embeddings", json={"input": ids, "tokenizer": tokenizer}).json()
    assert_same([np.array(entry["embedding"]) for entry in found["data"]], list(local.embed_documents(TEXTS)))
    outside = httpx.post(f"{url}/v1/embeddings", json={"input": [[1, 400]], "tokenizer": tokenizer})
    assert "Token id 400 is out of vocabulary" in outside.json()["error"]["message"]


@pytest.mark.parametrize("options", [{}, {"instruction": "python_code"}, {"instruction": "find texts", "steps": 7}])
def test_scores_are_cosines_of_an_instructed_query_and_bare_documents(
    url: str, local: Embedder, options: dict[str, Any]
) -> None:
    documents = local.embed_documents(TEXTS)
    query = local.embed_queries(["the way"], **options)[0]
    scores = httpx.post(f"{url}/score", json={"queries": "the way", "documents": TEXTS, **options}).json()["data"]
    np.testing.assert_allclose([entry["score"] for entry in scores], documents @ query, atol=1e-4)
    ranked = httpx.post(f"{url}/rerank", json={"query": "the way", "documents": TEXTS, **options}).json()["results"]
    assert [entry["index"] for entry in ranked] == (-documents @ query).argsort().tolist()
    assert np.abs(documents @ query - documents @ local.embed_documents(["the way"])[0]).max() > 1e-2


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"steps": 0}, "steps must be an integer from 1"),
        ({"instruction": " "}, "instruction is empty"),
        ({"documents": ["good", " "]}, "text 1 is empty or white space"),
        ({"max_tokens_per_doc": 5}, "max_tokens_per_doc are not supported"),
    ],
)
def test_bad_score_requests_are_explained(url: str, extra: dict[str, Any], message: str) -> None:
    response = httpx.post(f"{url}/score", json={"queries": "the way", "documents": TEXTS, **extra})
    assert response.status_code == 400
    assert message in response.json()["error"]["message"]


def test_a_text_is_truncated_only_on_request(url: str, local: Embedder) -> None:
    text = "world " * 600
    body = {"input": text, "truncate_prompt_tokens": -1}
    found = httpx.post(f"{url}/v1/embeddings", json=body).json()
    assert found["usage"]["prompt_tokens"] == 512
    assert_same([np.array(found["data"][0]["embedding"])], list(local.embed_documents([text])))


def test_an_embedder_on_the_server(url: str, folder: Path, local: Embedder) -> None:
    with Embedder.from_pretrained(str(folder), backend="vllm", url=url) as remote:
        assert remote.fingerprint == local.fingerprint and remote.dimension == local.dimension
        texts = [f"{text} {i}" for i in range(40) for text in TEXTS]
        steps = [1 + i % 6 for i in range(len(texts))]
        found = remote.embed(texts, instruction="find texts", steps=steps)
        expected = local.embed(texts, instruction="find texts", steps=steps)
        assert_same(list(found.vectors), list(expected.vectors))
        assert (found.steps == expected.steps).all() and (found.prompt_tokens == expected.prompt_tokens).all()
        mixed = remote.embed([*TEXTS, " "], on_error="return")
        assert list(mixed.errors) == [5]
        assert_same(list(mixed.vectors[:5]), list(local.embed(TEXTS).vectors))
        for refused in ({"steps": "auto"}, {"trajectory": True}, {"soft_tokens": 3}):
            with pytest.raises(InputError, match="returns the last embedding only"):
                remote.embed(TEXTS, **refused)
    with pytest.raises(GircseError, match="closed"):
        remote.embed_documents(TEXTS)


def test_another_model_is_refused(url: str, tmp_path: Path) -> None:
    base = plain_folder(tmp_path / "base")
    other = tiny.adapter(tmp_path / "adapter", base, head_dim=32)
    with pytest.raises(SpecMismatchError, match="adapter_hash differs"):
        Embedder.from_pretrained(str(other), backend="vllm", url=url)


def test_an_unreachable_server_is_reported(folder: Path) -> None:
    with pytest.raises(GircseError, match=r"no answer from http://127\.0\.0\.1:9"):
        Embedder.from_pretrained(str(folder), backend="vllm", url="http://127.0.0.1:9")


def test_clients_that_disconnect_do_not_affect_others(url: str, local: Embedder) -> None:
    def hang_up() -> None:
        with pytest.raises(httpx.TimeoutException):
            httpx.post(f"{url}/v1/embeddings", json={"input": TEXTS * 20, "steps": 60}, timeout=0.3)

    threads = [threading.Thread(target=hang_up) for _ in range(4)]
    for thread in threads:
        thread.start()
    body = {"input": TEXTS, "steps": 6}
    found = [httpx.post(f"{url}/v1/embeddings", json=body, timeout=300).json() for _ in range(3)]
    for thread in threads:
        thread.join()
    expected = list(local.embed(TEXTS, role="document", steps=6).vectors)
    for answer in found:
        assert_same([np.array(entry["embedding"]) for entry in answer["data"]], expected)
