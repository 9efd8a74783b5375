"""`gircse mcp`, asked by the SDK's own client: in memory, over HTTP, and over stdio."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from mcp import Client, StdioServerParameters
from qdrant_client import QdrantClient

from gircse_rag import Embedder
from gircse_rag.errors import StoreError
from gircse_rag.qdrant import Document, ingest, open_client, search
from gircse_rag.serving.mcp import make_http_app, make_mcp_server
from gircse_rag.serving.service import Service
from gircse_rag.serving.settings import Settings
from tests.http_server import serve

LONG = Document("long", "the way of the world. " * 400, {"kind": "saying"})
DOCUMENTS = [Document("cats", "a cat purrs", {"kind": "animal"}), LONG]


@pytest.fixture
def client(tmp_path: Path, embedder: Embedder) -> Iterator[QdrantClient]:
    opened = open_client(tmp_path / "store")
    ingest(DOCUMENTS, collection="notes", embedder=embedder, client=opened)
    yield opened
    opened.close()


def ask(server: Any, work: Callable[[Client], Awaitable[Any]]) -> Any:
    """Connect the SDK's client to `server` and run `work`."""

    async def run() -> Any:
        async with Client(server) as session:
            return await work(session)

    return asyncio.run(asyncio.wait_for(run(), 120))


def text_of(result: Any) -> str:
    return " ".join(part.text for part in result.content)


async def _search(session: Client) -> Any:
    return await session.call_tool("search", {"question": "purring", "instruction": "find texts", "limit": 2})


def test_tools_teach_an_agent_to_write_instructions(embedder: Embedder, client: QdrantClient) -> None:
    tools = ask(make_mcp_server(embedder, client, "notes"), lambda session: session.list_tools()).tools
    by_name = {tool.name: tool for tool in tools}
    assert by_name.keys() == {"search", "get_document"}
    fields = by_name["search"].input_schema["properties"]
    assert fields.keys() == {"question", "instruction", "filter", "limit", "mode"}
    assert "Given X, retrieve Y" in fields["instruction"]["description"]
    assert all(tool.annotations.read_only_hint for tool in tools)


def test_search_gives_the_hits_of_search(embedder: Embedder, client: QdrantClient) -> None:
    result = ask(make_mcp_server(embedder, client, "notes"), _search)
    assert not result.is_error, text_of(result)
    hits = search("purring", collection="notes", embedder=embedder, client=client, instruction="find texts", limit=2)
    found = result.structured_content["result"]
    assert [(hit["document"], hit["text"]) for hit in found] == [(hit.document, hit.text) for hit in hits]
    assert all("_chunk" not in hit["metadata"] for hit in found)


@pytest.mark.parametrize(("mode", "documents"), [("lexical", {"cats"}), ("dense", {"cats", "long"})])
def test_lexical_mode_finds_only_shared_words(
    embedder: Embedder, client: QdrantClient, mode: str, documents: set[str]
) -> None:
    server = make_mcp_server(embedder, client, "notes")
    arguments = {"question": "purrs", "mode": mode}
    found = ask(server, lambda session: session.call_tool("search", arguments)).structured_content["result"]
    assert {hit["document"] for hit in found} == documents


def test_a_filter_and_a_document(embedder: Embedder, client: QdrantClient) -> None:
    server = make_mcp_server(embedder, client, "notes")
    filtered = ask(server, lambda it: it.call_tool("search", {"question": "purring", "filter": {"kind": "animal"}}))
    assert [hit["document"] for hit in filtered.structured_content["result"]] == ["cats"]
    document = ask(server, lambda session: session.call_tool("get_document", {"id": "long"})).structured_content
    assert len(document["passages"]) > 1 and document["metadata"]["kind"] == "saying"
    assert "".join("".join(document["passages"]).split()) == "".join(LONG.text.split())


@pytest.mark.parametrize(
    ("tool", "arguments", "message"),
    [
        ("search", {"question": ""}, "is empty or white space"),
        ("search", {"question": "a\x00"}, "control character"),
        ("search", {"question": "a", "instruction": " "}, "instruction is empty"),
        ("search", {"question": "a", "limit": 10**6}, "limit"),
        ("search", {"question": "a", "filter": {"kind": {"about": 1}}}, "is no range"),
        ("search", {"question": "a", "mode": "psychic"}, "mode"),
        ("search", {}, "question"),
        ("get_document", {"id": "nobody"}, "there is no document 'nobody'; pass the `document` of a hit"),
    ],
)
def test_errors_are_answers_that_an_agent_can_read(
    embedder: Embedder, client: QdrantClient, tool: str, arguments: dict[str, Any], message: str
) -> None:
    server = make_mcp_server(embedder, client, "notes")
    result = ask(server, lambda session: session.call_tool(tool, arguments))
    assert result.is_error and message in text_of(result)
    assert not ask(server, _search).is_error


def test_a_collection_that_does_not_exist(embedder: Embedder, client: QdrantClient) -> None:
    with pytest.raises(StoreError, match="no collection 'none'"):
        make_mcp_server(embedder, client, "none")


def test_over_http_with_a_key(embedder: Embedder, client: QdrantClient) -> None:
    server = make_mcp_server(embedder, client, "notes")
    for key in (None, "s3cret"):
        service = Service(embedder, Settings(model="tiny", api_key=key))
        with serve(service, make_http_app(server, service, "127.0.0.1")) as url:
            if key is None:
                assert not ask(f"{url}/mcp", _search).is_error
                rebound = httpx.post(f"{url}/mcp", json={}, headers={"Host": "evil.example"}, trust_env=False)
                assert rebound.status_code in (403, 421)
            else:
                assert httpx.post(f"{url}/mcp", json={}, trust_env=False).status_code == 401


@pytest.mark.slow
def test_over_stdio(embedder: Embedder, tiny_folder: Path, tmp_path: Path) -> None:
    with closing(open_client(tmp_path / "store")) as opened:
        ingest(DOCUMENTS, collection="notes", embedder=embedder, client=opened)
    arguments = ["-m", "gircse_rag.cli", "mcp", "--collection", "notes", "--path", str(tmp_path / "store")]
    arguments += ["--model", str(tiny_folder), "--device", "cpu", "--dtype", "float32"]
    result = ask(StdioServerParameters(command=sys.executable, args=arguments), _search)
    assert result.structured_content["result"][0]["document"] in ("cats", "long")
