"""The collection as tools for agents, over the Model Context Protocol: `gircse mcp`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import wraps
from typing import Annotated, Any, ParamSpec, TypeVar

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import ToolAnnotations
from pydantic import Field
from qdrant_client import QdrantClient
from starlette.applications import Starlette

import gircse_rag
from gircse_rag.embedder import Embedder
from gircse_rag.errors import GircseError, InputError
from gircse_rag.qdrant import search
from gircse_rag.qdrant.foreign import read_payload
from gircse_rag.qdrant.lexical import Mode
from gircse_rag.qdrant.points import Points, point_id
from gircse_rag.qdrant.retry import Retry
from gircse_rag.qdrant.schema import check_collection
from gircse_rag.qdrant.stores import store_errors, store_name
from gircse_rag.serving.gateway import Gateway
from gircse_rag.serving.service import Service

P = ParamSpec("P")
T = TypeVar("T")

MAX_HITS = 50
_RETRY_SECONDS = 10.0  # an agent waits for the answer

Question = Annotated[str, Field(description="What to look for, in plain words: a question or a description.")]
Instruction = Annotated[
    str | None,
    Field(
        description="One sentence that says what kind of passage answers the question. It changes the ranking. Write "
        "it as 'Given X, retrieve Y': 'Given a question, retrieve passages that answer it' (the default), 'Given an "
        "error message, retrieve the documentation of the function that raises it', 'Given a claim, retrieve passages "
        "that contradict it'. Describe the kind of passage; the subject belongs into the question."
    ),
]
MetadataFilter = Annotated[
    dict[str, Any] | None,
    Field(
        description="Metadata that a passage must have: {'kind': 'manual'}, {'year': {'gte': 2020}}, "
        "{'language': ['de', 'en']} for either, or {'kind': {'ne': 'news'}} for any other. The hits of an unfiltered "
        "search show the keys that exist."
    ),
]
SearchMode = Annotated[
    Mode | None,
    Field(
        description="How to rank: 'hybrid' by meaning and by shared words (the default), 'dense' by meaning only, "
        "'lexical' by words only, for names, numbers and error codes that must occur exactly."
    ),
]
Limit = Annotated[int, Field(ge=1, le=MAX_HITS, description="Maximum number of passages.")]


def make_mcp_server(embedder: Embedder, client: QdrantClient, collection: str) -> MCPServer[None]:
    """An MCP server with two tools over one collection: `search` and `get_document`. They only read.

    Raises:
        InputError, StoreError, SpecMismatchError: the collection does not exist, or another model made it.
    """
    with store_errors(client):
        check_collection(client, collection, embedder.spec)
    server = MCPServer(
        "gircse",
        title=f"Search {collection}",
        version=gircse_rag.__version__,
        instructions=f"Searches the collection {collection!r} by meaning. Search first; then fetch a document whose "
        "passage is promising but incomplete. If the hits are of the wrong kind, search with another instruction.",
    )
    read_only = ToolAnnotations(read_only_hint=True, open_world_hint=False)

    @server.tool(name="search", title=f"Search {collection}", annotations=read_only)
    @_errors_for_agents
    def search_(
        question: Question,
        instruction: Instruction = None,
        filter: MetadataFilter = None,
        limit: Limit = 5,
        mode: SearchMode = None,
    ) -> list[dict[str, Any]]:
        """Find the passages that answer a question best, best first.

        Each hit has the passage's text, its score, its document's id (for get_document) and its metadata.
        """
        hits = search(
            question,
            collection=collection,
            embedder=embedder,
            client=client,
            instruction=instruction,
            query_filter=filter,
            limit=limit,
            mode=mode,
        )
        return [
            {
                "document": hit.document,
                "score": round(hit.score, 4),
                "text": hit.text,
                "metadata": {key: value for key, value in hit.metadata.items() if key != "_chunk"},
            }
            for hit in hits
        ]

    @server.tool(name="get_document", title="Fetch a document", annotations=read_only)
    @_errors_for_agents
    def get_document(
        id: Annotated[str, Field(description="The `document` of a hit.")],
    ) -> dict[str, Any]:
        """Fetch all passages of a document, in order, with its metadata."""
        return read_document(id, collection=collection, client=client)

    return server


def read_document(document: str, *, collection: str, client: QdrantClient) -> dict[str, Any]:
    """A document as the collection has it: its id, metadata, and the texts of its chunks in order.

    Raises:
        InputError: the collection has no such document.
        StoreError: the store fails.
    """
    with store_errors(client):
        points = Points(client, collection, Retry(store_name(client), _RETRY_SECONDS))
        first = points.read([point_id(document, 0)])
        if not first:
            raise InputError(f"there is no document {document!r}; pass the `document` of a hit, unchanged")
        (head,) = first.values()
        ids = [point_id(document, number) for number in range(head.record.chunks)]
        found = points.read_whole(ids)
    passages = [read_payload(id, found[id].payload) for id in ids if id in found]
    metadata = {key: value for key, value in passages[0][2].items() if key != "_chunk"}
    return {"id": document, "metadata": metadata, "passages": [text for _, text, _ in passages]}


def make_http_app(server: MCPServer[None], service: Service, host: str) -> Gateway:
    """The server over streamable HTTP at /mcp, behind the same gateway as `gircse serve`.

    On a loopback `host` the SDK checks the Host and Origin headers, so that web pages cannot reach it.
    """
    app: Starlette = server.streamable_http_app(host=host)
    sessions = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(running: Starlette) -> AsyncIterator[Any]:
        service.start()
        async with sessions(running) as state:
            yield state
        service.close()

    app.router.lifespan_context = lifespan
    return Gateway(app, service)


def _errors_for_agents(tool: Callable[P, T]) -> Callable[P, T]:
    """Turn our errors into answers that the agent reads; the SDK hides the message of other exceptions."""

    @wraps(tool)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return tool(*args, **kwargs)
        except GircseError as error:
            raise ToolError(str(error)) from error

    return call
