from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from gircse_rag import Embedder
from gircse_rag.serving.service import Service
from gircse_rag.serving.settings import Settings
from tests.http_server import serve
from tests.unit.serving.conftest import MODEL

pytestmark = pytest.mark.filterwarnings("ignore::gircse_rag.errors.GircseWarning")

TEXTS = ["a cat purrs", '"quoted" text', "a cat purrs", "the way of the world"]


def embeddings(http: httpx.Client, **body: Any) -> Any:
    response = http.post("/v1/embeddings", json={"model": MODEL, **body})
    assert response.status_code == 200, response.text
    answer = response.json()
    assert [entry["index"] for entry in answer["data"]] == list(range(len(answer["data"])))
    return answer


def vectors(answer: Any) -> np.ndarray[Any, Any]:
    return np.array([entry["embedding"] for entry in answer["data"]], dtype=np.float32)


def assert_equal(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> None:
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 2e-5


def test_a_bare_request_embeds_documents(http: httpx.Client, embedder: Embedder) -> None:
    answer = embeddings(http, input=TEXTS)
    result = embedder.embed(TEXTS, role="document")
    assert_equal(vectors(answer), result.vectors)
    assert answer["usage"] == {"prompt_tokens": sum(result.prompt_tokens), "total_tokens": sum(result.prompt_tokens)}
    assert answer["model"] == MODEL and answer["object"] == "list"
    assert_equal(vectors(embeddings(http, input=TEXTS[0])), result.vectors[:1])


def test_base64_is_little_endian_float32(http: httpx.Client, embedder: Embedder) -> None:
    answer = embeddings(http, input=TEXTS, encoding_format="base64", endianness="little", user="somebody")
    decoded = [np.frombuffer(base64.b64decode(entry["embedding"]), "<f4") for entry in answer["data"]]
    assert_equal(np.stack(decoded), embedder.embed_documents(TEXTS))


def test_floats_have_all_the_digits_of_a_float32(http: httpx.Client) -> None:
    """Two requests cannot be compared bit by bit, because sweeps and the prefix cache round differently."""
    values = [value for entry in embeddings(http, input=TEXTS)["data"] for value in entry["embedding"]]
    assert all(value == float(str(np.float32(value))) for value in values)
    digits = [len(f"{value!r}".partition("e")[0].replace(".", "").lstrip("-0")) for value in values]
    assert 8 <= max(digits) <= 9


@pytest.mark.parametrize(
    ("fields", "arguments"),
    [
        ({"instruction": "find texts"}, {"instruction": "find texts"}),
        ({"role": "query"}, {}),
        ({"role": "symmetric", "instruction": "find texts"}, {"role": "symmetric", "instruction": "find texts"}),
        ({"role": "query", "steps": 9}, {"steps": 9}),
        ({"role": "query", "steps": [1, 2, 3, 4]}, {"steps": [1, 2, 3, 4]}),
        ({"role": "query", "steps": "auto"}, {"steps": "auto"}),
    ],
)
def test_role_instruction_and_steps(
    http: httpx.Client, embedder: Embedder, fields: dict[str, Any], arguments: dict[str, Any]
) -> None:
    assert_equal(vectors(embeddings(http, input=TEXTS, **fields)), embedder.embed(TEXTS, **arguments).vectors)


@pytest.mark.parametrize("dimensions", [1, 8, 32])
def test_vectors_are_shortened_on_request(http: httpx.Client, tiny_folder: Path, dimensions: int) -> None:
    short = Embedder.from_pretrained(str(tiny_folder), dtype="float32", device="cpu", dimensions=dimensions)
    expected = short.embed_documents(TEXTS)
    assert_equal(vectors(embeddings(http, input=TEXTS, dimensions=dimensions)), expected)
    cohere = {"texts": TEXTS, "model": MODEL, "input_type": "search_document", "output_dimension": dimensions}
    assert_equal(np.array(http.post("/v2/embed", json=cohere).json()["embeddings"]["float"]), expected)
    assert_equal(np.array(http.post("/embed", json={"inputs": TEXTS, "dimensions": dimensions}).json()), expected)


def test_long_texts_are_cut_only_on_request(http: httpx.Client, embedder: Embedder) -> None:
    long = "the way of the world " * 300
    refused = http.post("/v1/embeddings", json={"input": ["short", long]})
    assert refused.status_code == 400
    assert "text 1 is longer than 512 tokens" in refused.json()["error"]["message"]
    answer = embeddings(http, input=long, truncate_prompt_tokens=-1)
    assert_equal(vectors(answer), embedder.embed_documents([long]))
    assert answer["usage"]["prompt_tokens"] == 512
    assert embeddings(http, input=long, truncate_prompt_tokens=7)["usage"]["prompt_tokens"] == 7


def test_token_ids_are_refused_with_the_remedy(http: httpx.Client) -> None:
    for ids in ([1, 2, 3], [[1, 2], [3]]):
        response = http.post("/v1/embeddings", json={"input": ids})
        assert response.status_code == 400
        error = response.json()["error"]
        assert "check_embedding_ctx_length=False" in error["message"] and "--accept-token-ids" in error["message"]
        assert error["code"] == "token_ids_refused"


def test_token_ids_of_a_client_that_names_the_tokenizer(http: httpx.Client, embedder: Embedder) -> None:
    ids = [embedder.tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    answer = embeddings(http, input=ids, tokenizer=embedder.spec.tokenizer_hash)
    assert_equal(vectors(answer), embedder.embed_documents(TEXTS))
    other = http.post("/v1/embeddings", json={"input": ids, "tokenizer": "0" * 64})
    assert other.status_code == 400 and other.json()["error"]["code"] == "token_ids_refused"


def test_token_ids_may_be_accepted(embedder: Embedder) -> None:
    ids = embedder.tokenizer(TEXTS[0], add_special_tokens=False)["input_ids"]
    settings = Settings(model=MODEL, accept_token_ids=True)
    with serve(Service(embedder, settings)) as url, httpx.Client(base_url=url, timeout=60, trust_env=False) as http:
        assert_equal(vectors(embeddings(http, input=ids)), embedder.embed_documents(TEXTS[:1]))


def test_an_embedder_of_another_process_gets_the_same_vectors(url: str, tiny_folder: Path, embedder: Embedder) -> None:
    with Embedder.from_pretrained(str(tiny_folder), backend="vllm", url=url) as remote:
        assert remote.fingerprint == embedder.fingerprint
        assert_equal(remote.embed_documents(TEXTS), embedder.embed_documents(TEXTS))
        query: dict[str, Any] = {"instruction": "find texts", "steps": 8}
        assert_equal(remote.embed_queries(TEXTS, **query), embedder.embed_queries(TEXTS, **query))
        result = remote.embed(["good", "too\x00bad"], on_error="return")
        assert list(result.errors) == [1]


def test_models_and_spec(http: httpx.Client, embedder: Embedder) -> None:
    assert [entry["id"] for entry in http.get("/v1/models").json()["data"]] == [MODEL]
    assert http.get(f"/v1/models/{MODEL}").json()["object"] == "model"
    missing = http.get("/v1/models/gpt-4")
    assert missing.status_code == 404 and MODEL in missing.json()["error"]["message"]
    info = http.get("/v1/gircse").json()
    assert info["fingerprint"] == embedder.fingerprint and info["spec"] == embedder.spec.to_dict()
    assert info["window"] == 1024


def test_the_schema_lists_the_routes_and_fields(http: httpx.Client) -> None:
    schema = http.get("/openapi.json").json()
    assert {"/v1/embeddings", "/v2/embed", "/embed", "/health", "/ready", "/metrics"} <= schema["paths"].keys()
    assert "instruction" in schema["components"]["schemas"]["EmbeddingsBody"]["properties"]
