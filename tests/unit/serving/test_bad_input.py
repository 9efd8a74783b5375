"""Whatever a client sends, the answer is an error in the API's own shape, and the server goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from gircse_rag.backends.paged import PagedBackend
from tests.unit.serving.conftest import MODEL

pytestmark = pytest.mark.slow  # every test starts a server

OPENAI = {"model": MODEL, "input": ["fine"]}
COHERE = {"model": MODEL, "texts": ["fine"], "input_type": "search_document"}
TEI = {"inputs": ["fine"]}
ROUTES: dict[str, dict[str, Any]] = {"/v1/embeddings": OPENAI, "/v2/embed": COHERE, "/embed": TEI}
TEXT_FIELDS = {"/v1/embeddings": "input", "/v2/embed": "texts", "/embed": "inputs"}

JSON = {"Content-Type": "application/json"}
DEEP = b"[" * 100_000


def message_of(route: str, response: httpx.Response) -> str:
    """The message of an error in the API's shape."""
    body = response.json()
    if route == "/v2/embed":
        assert set(body) == {"id", "message"}
        return str(body["message"])
    if route == "/embed":
        assert set(body) == {"error", "error_type"}
        return str(body["error"])
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}
    return str(body["error"]["message"])


@pytest.fixture(autouse=True)
def the_server_goes_on(http: httpx.Client, backend: PagedBackend) -> Iterator[None]:
    yield
    answer = http.post("/v1/embeddings", json=OPENAI)
    assert answer.status_code == 200
    assert backend.stats.running == backend.stats.waiting == backend.stats.used_blocks == 0


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (b"", 400, "the body must be a JSON object|the body is not JSON"),
        (b"{", 400, "the body is not JSON"),
        (b"{\xff}", 400, "body"),
        (b"[1, 2]", 400, "the body must be a JSON object"),
        (b"null", 400, "the body must be a JSON object"),
        (DEEP, 400, "body"),
        (b'{"input": 1' + b"0" * 5000 + b"}", 400, "body"),
        (b" " * (10 * 2**20), 413, "the body is larger than 8388608 bytes"),
    ],
    ids=["empty", "cut", "not UTF-8", "list", "null", "deep", "huge number", "10 MB"],
)
def test_bodies(http: httpx.Client, route: str, content: bytes, status: int, message: str) -> None:
    response = http.post(route, content=content, headers=JSON)
    assert response.status_code == status, response.text
    assert any(part in message_of(route, response) for part in message.split("|"))
    assert response.headers["X-Request-Id"]


@pytest.mark.parametrize("route", ROUTES)
def test_another_content_type_is_refused(http: httpx.Client, route: str) -> None:
    """Web pages can post forms and plain text anywhere without asking, but not JSON."""
    content = json.dumps(ROUTES[route]).encode()
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        response = http.post(route, content=content, headers={"Content-Type": kind})
        assert response.status_code == 400 and "Content-Type: application/json" in message_of(route, response)


BAD_TEXTS: list[tuple[Any, str]] = [
    ([], "there are no inputs"),
    ([""], "text 0 is empty or white space"),
    (["fine", " \n"], "text 1 is empty or white space"),
    (["fine", "nul\x00"], "text 1 holds the control character U+0000 (NUL)"),
    (["fine", "\ud800"], "text 1 holds the lone surrogate U+D800"),
    (["fine", None], "text 1 is not a string but NoneType"),
    (["fine", {"text": "a"}], "text 1 is not a string but dict"),
    (7, "text"),
    ({"text": "a"}, "text"),
    (["a"] * 100_000, "100000 inputs are too many for one request; send at most 2048"),
]


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(("texts", "message"), BAD_TEXTS, ids=[message[:30] for _, message in BAD_TEXTS])
def test_texts(http: httpx.Client, route: str, texts: Any, message: str) -> None:
    response = http.post(route, content=json.dumps({**ROUTES[route], TEXT_FIELDS[route]: texts}), headers=JSON)
    assert response.status_code == 400, response.text
    assert message in message_of(route, response)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (10**9, "steps must be an integer from 1 to 256"),
        (65, "65 refinement steps are too many for this server; send at most 64"),
        (0, "steps must be an integer from 1 to 256"),
        (True, "steps must be an integer from 1 to 256"),
        (2.5, "steps must be an integer from 1 to 256"),
        ("many", "steps must be an integer from 1 to 256"),
        ([1, 2], "steps has 2 entries for 1 inputs"),
        ([[1]], "steps must be an integer from 1 to 256"),
    ],
)
def test_steps(http: httpx.Client, route: str, steps: Any, message: str) -> None:
    response = http.post(route, json={**ROUTES[route], "steps": steps})
    assert response.status_code == 400 and message in message_of(route, response)


@pytest.mark.parametrize("route", ROUTES)
def test_unknown_fields_are_named_with_the_known_ones(http: httpx.Client, route: str) -> None:
    response = http.post(route, json={**ROUTES[route], "instructoin": "find texts"})
    assert response.status_code == 400
    message = message_of(route, response)
    assert "there is no field 'instructoin'" in message and "instruction, " in message


@pytest.mark.parametrize(
    ("route", "field"), [("/v1/embeddings", "dimensions"), ("/v2/embed", "output_dimension"), ("/embed", "dimensions")]
)
@pytest.mark.parametrize("dimensions", [0, -1, 33, 10**9])
def test_impossible_dimensions(http: httpx.Client, route: str, field: str, dimensions: int) -> None:
    response = http.post(route, json={**ROUTES[route], field: dimensions})
    assert response.status_code == 400 and "dimensions must be an integer from 1 to 32" in message_of(route, response)


@pytest.mark.parametrize("route", ["/v1/embeddings", "/v2/embed"])
def test_an_unknown_model_is_answered_with_the_served_name(http: httpx.Client, route: str) -> None:
    response = http.post(route, json={**ROUTES[route], "model": "text-embedding-3-small"})
    assert response.status_code == 404
    assert "'text-embedding-3-small'" in message_of(route, response) and f"'{MODEL}'" in message_of(route, response)


@pytest.mark.parametrize(
    ("route", "fields", "message"),
    [
        ("/v1/embeddings", {"role": "passage"}, "role: input should be 'query', 'document' or 'symmetric'"),
        ("/v1/embeddings", {"role": "document", "instruction": "x"}, "a document takes no instruction"),
        ("/v1/embeddings", {"role": "query", "instruction": " "}, "instruction is empty"),
        ("/v1/embeddings", {"role": "query", "instruction": "a\x00"}, "the instruction holds the control character"),
        ("/v1/embeddings", {"role": "query", "instruction": "word " * 600}, "has no room"),
        ("/v1/embeddings", {"encoding_format": "hex"}, "encoding_format: input should be 'float' or 'base64'"),
        ("/v1/embeddings", {"truncate_prompt_tokens": 0}, "truncate_prompt_tokens must be -1 or at least 1"),
        ("/v1/embeddings", {"dimensions": "32"}, "dimensions: input should be a valid integer, not '32'"),
        ("/v2/embed", {"input_type": "image"}, "input_type: input should be 'search_query'"),
        ("/v2/embed", {"embedding_types": ["int8"]}, "embedding_types.0: input should be 'float' or 'base64'"),
        ("/v2/embed", {"truncate": "START"}, "truncate: input should be 'NONE' or 'END'"),
        ("/v2/embed", {"texts": "one text"}, "texts must be a list of texts"),
        ("/embed", {"normalize": False}, "vectors have unit length by definition"),
        ("/embed", {"role": "query", "prompt_name": "document"}, "differ; send one of them"),
    ],
)
def test_arguments(http: httpx.Client, route: str, fields: dict[str, Any], message: str) -> None:
    response = http.post(route, json={**ROUTES[route], **fields})
    assert response.status_code == 400, response.text
    assert message in message_of(route, response)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([[]], "text 0: a prompt needs at least one token"),
        ([[1], []], "text 1: a prompt needs at least one token"),
        ([[1], [400]], "text 1: token id 400 is outside the model's vocabulary of 400"),
        ([[-1]], "text 0: token id -1 is outside"),
        ([[1, "a"]], "input 0 is not a list of token ids"),
        ([[1], "text"], "input 1 is not a list of token ids"),
        ([[1, 1.5]], "input 0 is not a list of token ids"),
        ([[1] * 1024], "text 0: a prompt of 1024 tokens and 5 refinement steps do not fit the model's window of 1024"),
        ([[1] * 1000] * 300, "300000 tokens are too many for one request; send at most 262144"),
    ],
)
def test_token_ids(http: httpx.Client, ids: Any, message: str) -> None:
    tokenizer = http.get("/v1/gircse").json()["spec"]["tokenizer_hash"]
    response = http.post("/v1/embeddings", json={"input": ids, "tokenizer": tokenizer})
    assert response.status_code == 400 and message in message_of("/v1/embeddings", response)


def test_routes_that_do_not_exist(http: httpx.Client) -> None:
    missing = http.get("/v1/embedings")
    assert missing.status_code == 404 and "/openapi.json" in message_of("/v1/embedings", missing)
    wrong = http.get("/v1/embeddings")
    assert wrong.status_code == 405 and wrong.headers["Allow"] == "POST"
    assert http.get("/docs").status_code == 404  # it would load scripts from a CDN
