"""The requests of the playground, and the files of its page."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from qdrant_client import QdrantClient

import gircse_rag.serving
from gircse_rag import Embedder
from gircse_rag.qdrant import create_collection, open_client
from gircse_rag.qdrant.projection import Projection, project
from gircse_rag.serving.service import Service
from gircse_rag.serving.settings import Settings
from tests.http_server import serve
from tests.stand_in import StandIn
from tests.unit.serving.conftest import MODEL

pytestmark = [
    pytest.mark.slow,  # every test starts a server
    pytest.mark.filterwarnings("ignore::gircse_rag.errors.GircseWarning"),  # as in `gircse serve`
]

FILES = Path(gircse_rag.serving.__path__[0]) / "playground"
DOCUMENTS = [
    {"id": f"{kind} {number}", "text": f"the {kind} number {number}", "metadata": {"kind": kind, "year": 1990 + number}}
    for kind in ("cat", "dog", "way")
    for number in range(6)
]


@pytest.fixture
def http(embedder: Embedder, tmp_path: Path) -> Iterator[httpx.Client]:
    with closing(open_client(tmp_path / "store")) as client:
        create_collection(client, "foreign", StandIn(dimension=32))
        create_collection(client, "empty", embedder)
        service = Service(embedder, Settings(model=MODEL, max_steps=16), client=client, collection="notes")
        with serve(service) as url, httpx.Client(base_url=url, timeout=60, trust_env=False) as http:
            assert add(http, DOCUMENTS)["failed"] == 0
            yield http


def add(http: httpx.Client, documents: list[dict[str, Any]]) -> Any:
    return http.post("/v1/collections/notes/documents", json={"documents": documents}).json()


def test_search_ranks_every_step_as_search_does(http: httpx.Client, embedder: Embedder) -> None:
    asked = {"question": "the cat", "instruction": "find texts", "limit": 4}
    answer = http.post("/v1/playground/search", json={**asked, "steps": 6})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["collection"], body["instruction"], body["mode"]) == ("notes", "find texts", "hybrid")
    assert len(body["steps"]) == len(body["soft_tokens"]) == 6
    for step, hits in enumerate(body["steps"], start=1):
        alone = http.post("/v1/search", json={**asked, "steps": step}).json()["hits"]
        assert [hit["score"] for hit in hits] == pytest.approx([hit["score"] for hit in alone], abs=1e-5)
        for hit in hits:
            assert body["passages"][hit["id"]].keys() == {"document", "text", "metadata"}
    vectors = np.frombuffer(base64.b64decode(body["vectors"]), dtype="<f4").reshape(6, -1)
    embedded = embedder.embed(["the cat"], instruction="find texts", steps=6, trajectory=True).trajectory
    assert embedded is not None and np.allclose(vectors, embedded[0], atol=1e-5)


def test_the_map_has_coordinates_and_colours(http: httpx.Client) -> None:
    body = http.post("/v1/playground/map", json={}).json()
    assert body["total"] == len(body["points"]) == len(body["coordinates"]) == 18
    fields = {field["name"]: field for field in body["fields"]}
    assert set(fields["kind"]["values"]) == {"cat", "dog", "way"}
    for point, code in zip(body["points"], fields["kind"]["codes"], strict=True):
        assert point["document"].startswith(fields["kind"]["values"][code])
    assert "year" in fields and "source" not in fields  # a source per point needs a colour per point
    assert np.asarray(body["components"]).shape == (2, len(body["mean"]))


def test_the_map_is_kept_until_the_collection_changes(http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def recording(client: QdrantClient, collection: str, dimension: int) -> Projection:
        read.append(collection)
        return project(client, collection, dimension)

    monkeypatch.setattr("gircse_rag.serving.playground_api.project", recording)
    first = http.post("/v1/playground/map", json={}).json()
    assert http.post("/v1/playground/map", json={}).json() == first and read == ["notes"]
    changed = {**DOCUMENTS[0], "text": "another text"}
    assert add(http, [changed])["updated"] == 1
    texts = {point["text"] for point in http.post("/v1/playground/map", json={}).json()["points"]}
    assert "another text" in texts and read == ["notes"] * 2
    http.post("/v1/playground/map", json={"fresh": True})
    assert read == ["notes"] * 3


def test_compare_scores_instructions(http: httpx.Client) -> None:
    pairs = [{"question": document["text"], "document": document["id"]} for document in DOCUMENTS[:5]]
    body = {"pairs": [*pairs, {"question": "no answer"}], "instructions": ["find texts", "find texts", "find cats"]}
    answer = http.post("/v1/playground/compare", json=body)
    assert answer.status_code == 200, answer.text
    result = answer.json()
    assert result["questions"] == 5 and "has no answer" in result["skipped"][0]
    assert [row["instruction"] for row in result["instructions"]] == [None, "find texts", "find cats"]
    for row in result["instructions"]:
        assert 0 <= row["ndcg@10"]["low"] <= row["ndcg@10"]["value"] <= row["ndcg@10"]["high"] <= 1
    assert result["instructions"][0]["lead"]["value"] == 0


@pytest.mark.parametrize(
    ("route", "body", "status", "message"),
    [
        ("search", {"question": ""}, 400, "is empty or white space"),
        ("search", {"question": "a", "steps": 17}, 400, "send at most 16"),
        ("search", {"question": "a", "steps": 0}, 400, "steps must be an integer"),
        ("search", {"question": "a", "limit": 51}, 400, "limit: "),
        ("search", {"question": "a", "mode": "lexical"}, 400, "mode: "),
        ("search", {"question": "a", "kollection": "notes"}, 400, "there is no field 'kollection'"),
        ("search", {"question": "word " * 600}, 400, "the question"),
        ("search", {"question": "a", "collection": "none"}, 404, "no collection 'none'"),
        ("search", {"question": "a", "collection": "foreign"}, 409, "embed into different vector spaces"),
        ("map", {"collection": "none"}, 404, "no collection 'none'"),
        ("map", {"collection": "foreign"}, 409, "embed into different vector spaces"),
        ("compare", {"pairs": [], "instructions": ["a"]}, 400, "there are no pairs"),
        (
            "compare",
            {"pairs": [{"question": "a"}], "instructions": ["a"]},
            400,
            "no pair has a question and its answer",
        ),
        ("compare", {"pairs": [{"question": "a", "document": "b"}], "instructions": []}, 400, "instructions: "),
        (
            "compare",
            {"pairs": [{"question": "a", "document": "b"}], "instructions": [" "]},
            400,
            "instruction is empty",
        ),
        ("compare", {"pairs": [{"question": "w " * 900, "document": "b"}], "instructions": ["a"]}, 400, "the question"),
    ],
)
def test_bad_input(http: httpx.Client, route: str, body: dict[str, Any], status: int, message: str) -> None:
    answer = http.post(f"/v1/playground/{route}", json=body)
    assert answer.status_code == status, answer.text
    assert message in answer.json()["error"]["message"]


def test_an_empty_collection(http: httpx.Client) -> None:
    found = http.post("/v1/playground/search", json={"question": "a", "collection": "empty", "steps": 3}).json()
    assert found["steps"] == [[], [], []] and found["passages"] == {}
    assert http.post("/v1/playground/map", json={"collection": "empty"}).json()["points"] == []


def test_compare_without_its_extra_says_what_to_install(http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pytrec_eval", None)
    body = {"pairs": [{"question": "a", "document": "b"}], "instructions": ["a"]}
    answer = http.post("/v1/playground/compare", json=body)
    assert answer.status_code == 501 and "[eval]" in answer.json()["error"]["message"]


def test_the_page_and_its_files_have_a_strict_policy(http: httpx.Client) -> None:
    page = http.get("/")
    assert page.headers["Content-Type"].startswith("text/html") and "<h1>gircse" in page.text
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    for path in FILES.rglob("*.*"):
        name = path.relative_to(FILES).as_posix()
        answer = http.get(f"/playground/{name}")
        if path.suffix in (".js", ".css", ".svg", ".html"):
            assert answer.status_code == 200 and answer.content == path.read_bytes()
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
        else:
            assert answer.status_code == 404
    for name in ("../app.py", "%2e%2e/app.py", "none.js", "", "/etc/passwd"):
        assert http.get(f"/playground/{name}").status_code == 404


def test_the_page_needs_nothing_from_elsewhere_and_no_inline_code() -> None:
    html = (FILES / "index.html").read_text()
    assert "://" not in html and "style=" not in html and " onclick" not in html
    for path in FILES.glob("*.js"):
        code = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "://" not in code, f"{path.name} names an address"
        for dangerous in ("innerHTML", "outerHTML", "insertAdjacentHTML", "eval(", "localStorage", "sessionStorage"):
            assert dangerous not in code, f"{path.name} uses {dangerous}"


def test_the_key_opens_everything_but_the_page(embedder: Embedder, tmp_path: Path) -> None:
    with closing(open_client(tmp_path / "store")) as client:
        service = Service(embedder, Settings(model=MODEL, api_key="s3cret"), client=client, collection="notes")
        with serve(service) as url, httpx.Client(base_url=url, trust_env=False) as http:
            assert http.get("/").status_code == http.get("/playground/app.js").status_code == 200
            for route in ("search", "map", "compare"):
                assert http.post(f"/v1/playground/{route}", json={}).status_code == 401
            assert http.get("/v1/playground/settings").status_code == 401
            keyed = http.get("/v1/playground/settings", headers={"Authorization": "Bearer s3cret"})
            assert keyed.json()["instruction"] == embedder.spec.default_instruction


def test_without_a_store_there_is_no_page(url: str) -> None:
    assert httpx.get(url, trust_env=False).status_code == 404
