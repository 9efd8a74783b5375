"""The store over HTTP: several programs share an embedded store, which only one process may open.

POST   /v1/search                                 one question
GET    /v1/collections                            names, sizes, and whether this model made them
POST   /v1/collections/{name}/documents           ingest documents; idempotent, one result per document
DELETE /v1/collections/{name}/documents?id=ID     delete documents
"""

from __future__ import annotations

import threading
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from qdrant_client import QdrantClient

from gircse_rag.documents.document import Document
from gircse_rag.errors import InputError, SpecMismatchError, StoreError
from gircse_rag.qdrant import delete_documents, ingest, search
from gircse_rag.qdrant.lexical import Mode
from gircse_rag.qdrant.limits import check_name
from gircse_rag.qdrant.schema import check_collection
from gircse_rag.qdrant.stores import build_index, store_errors
from gircse_rag.serving.embedding import check_count, check_question, check_server_steps, embedder_for
from gircse_rag.serving.openai_api import Steps, json_response, to_json
from gircse_rag.serving.problems import RefusedError
from gircse_rag.serving.service import Service

_STRICT = ConfigDict(extra="forbid", strict=True)


class SearchBody(BaseModel):
    """Body of `POST /v1/search`; the fields are those of `gircse_rag.qdrant.search`."""

    model_config = _STRICT

    question: str
    collection: str | None = None
    instruction: str | None = None
    limit: int = Field(5, ge=1)
    offset: int = Field(0, ge=0)
    steps: Steps = None
    filter: dict[str, Any] | None = Field(None, description="Metadata keys and values, as `as_filter` takes them.")
    min_score: float | None = None
    group: int | None = Field(None, ge=1, description="Maximum hits per document; `limit` then counts documents.")
    mmr: float | None = Field(None, ge=0, le=1)
    mode: Mode | None = Field(None, description="Default: hybrid, or dense if the collection has no lexical vector.")


class DocumentBody(BaseModel):
    """One document."""

    model_config = _STRICT

    id: str
    text: str
    metadata: dict[str, Any] = Field(default_factory=dict)
    markdown: bool = False


class DocumentsBody(BaseModel):
    """Body of `POST /v1/collections/{name}/documents`. Each document is a `DocumentBody`."""

    model_config = _STRICT

    documents: list[Any]
    source: str | None = Field(None, description="Name of the documents' source, recorded with each.")


def collection_routes(service: Service, client: QdrantClient) -> APIRouter:
    """The routes over `service` and its store."""
    router = APIRouter()
    settings = service.settings

    @router.post("/v1/search")
    async def search_(body: SearchBody, request: Request) -> Response:
        name = default_name(service, body.collection)
        if body.limit > settings.max_hits:
            raise InputError(f"limit {body.limit} is too large for this server; send at most {settings.max_hits}")
        if body.steps is not None and body.steps != "auto":
            check_server_steps(body.steps, settings)
        arguments: dict[str, Any] = {
            "instruction": body.instruction,
            "limit": body.limit,
            "offset": body.offset,
            "steps": body.steps,
            "query_filter": body.filter,
            "min_score": body.min_score,
            "group_size": body.group,
            "mmr": body.mmr,
            "mode": body.mode,
        }

        def work(cancelled: threading.Event) -> bytes:
            embedder = embedder_for(service.embedder, service.backend, cancelled)
            check_exists(client, name)
            used = check_question(embedder, body.question, body.instruction)
            hits = search(body.question, collection=name, embedder=embedder, client=client, **arguments)
            head = {"question": body.question, "instruction": used, "collection": name}
            return to_json({**head, "hits": [asdict(hit) for hit in hits]})

        return json_response(await service.calls.run(request, work))

    @router.get("/v1/collections")
    async def collections(request: Request) -> Response:
        def work(_: threading.Event) -> bytes:
            with store_errors(client):
                names = sorted(each.name for each in client.get_collections().collections)
                listed = [
                    {
                        "name": name,
                        "points": client.get_collection(name).points_count or 0,
                        "compatible": _is_compatible(service, client, name),
                    }
                    for name in names
                ]
            return to_json({"default": service.collection, "collections": listed})

        return json_response(await service.calls.run(request, work))

    @router.post("/v1/collections/{name}/documents")
    async def add(name: str, body: DocumentsBody, request: Request) -> Response:
        check_count(len(body.documents), settings, "documents")

        def work(cancelled: threading.Event) -> bytes:
            documents, refused = _read_documents(body.documents)
            embedder = embedder_for(service.embedder, service.backend, cancelled)
            report = ingest(documents, collection=name, embedder=embedder, client=client, source=body.source)
            build_index(client, name)
            reasons = {failed.id: failed.reason for failed in report.failed}
            results: list[dict[str, Any]] = [
                {"id": document.id, "status": "failed", "reason": reasons[document.id]}
                if document.id in reasons
                else {"id": document.id, "status": "stored", "reason": None}
                for document in documents
            ]
            for index, entry in refused:
                results.insert(index, entry)
            counts = {
                field: getattr(report, field) for field in ("added", "updated", "unchanged", "deleted", "embedded")
            }
            request.scope["gircse_counts"] = {"inputs": len(results), "prompt_tokens": report.prompt_tokens}
            failed = len(reasons) + len(refused)
            return to_json({"collection": name, **counts, "failed": failed, "documents": results})

        return json_response(await service.writes.run(request, work))

    @router.delete("/v1/collections/{name}/documents")
    async def delete(name: str, request: Request, id: Annotated[list[str], Query()]) -> Response:
        check_count(len(id), settings, "ids")

        def work(_: threading.Event) -> bytes:
            check_exists(client, name)
            deleted = delete_documents(id, collection=name, client=client)
            missing = [document for document in dict.fromkeys(id) if document not in set(deleted)]
            return to_json({"collection": name, "deleted": deleted, "missing": missing})

        return json_response(await service.writes.run(request, work))

    return router


def default_name(service: Service, name: str | None) -> str:
    """The collection that a request names, else the default one.

    Raises:
        InputError: there is neither.
    """
    if name := name or service.collection:
        return name
    raise InputError("there is no default collection; name one as `collection`")


def check_exists(client: QdrantClient, name: str) -> None:
    """Check that a collection exists.

    Raises:
        RefusedError: 404, it does not; names those that do.
        InputError: no collection can have this name.
    """
    check_name(name)
    with store_errors(client):
        if client.collection_exists(name):
            return
        known = ", ".join(sorted(each.name for each in client.get_collections().collections)) or "none"
    raise RefusedError(404, f"there is no collection {name!r} (there is: {known})", code="collection_not_found")


def _is_compatible(service: Service, client: QdrantClient, name: str) -> bool:
    try:
        check_collection(client, name, service.embedder.spec)
    except (SpecMismatchError, StoreError):
        return False
    return True


def _read_documents(entries: list[Any]) -> tuple[list[Document], list[tuple[int, dict[str, Any]]]]:
    """The documents, and (position, result) of every entry that is none. One bad entry does not spoil the others."""
    documents: list[Document] = []
    refused: list[tuple[int, dict[str, Any]]] = []
    for index, entry in enumerate(entries):
        try:
            documents.append(Document(**DocumentBody.model_validate(entry).model_dump()))
        except ValidationError as error:
            fault = error.errors()[0]
            where = ".".join(map(str, fault["loc"])) or "the document"
            reason = f"{where}: {fault['msg'][:1].lower()}{fault['msg'][1:]}"
            given = entry.get("id") if isinstance(entry, dict) else None
            refused.append((index, {"id": given, "status": "failed", "reason": reason}))
    return documents, refused
