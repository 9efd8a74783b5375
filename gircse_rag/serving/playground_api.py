"""The playground: a page at `/`, and the requests that only it makes.

GET  /                            the page; its files are in `playground/`, at /playground/NAME
GET  /v1/playground/settings      the model and the limits of the form
POST /v1/playground/search        rankings and soft tokens after each step, from one forward
POST /v1/playground/map           the collection on a plane
POST /v1/playground/compare       scores of instructions
"""

from __future__ import annotations

import base64
import threading
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from qdrant_client import QdrantClient

from gircse_rag.errors import InputError, MissingExtraError, require
from gircse_rag.prompts import resolve_instruction
from gircse_rag.qdrant.projection import MapPoint, Projection, project
from gircse_rag.qdrant.schema import check_collection
from gircse_rag.qdrant.stores import store_errors
from gircse_rag.qdrant.trajectory import search_trajectory
from gircse_rag.serving.collections import check_exists, default_name
from gircse_rag.serving.embedding import check_count, check_question, check_server_steps, embedder_for
from gircse_rag.serving.openai_api import json_response, to_json
from gircse_rag.serving.problems import RefusedError
from gircse_rag.serving.service import Service

_STRICT = ConfigDict(extra="forbid", strict=True)
_FOLDER = Path(__file__).with_name("playground")
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_MAX_HITS = 50
_MAX_INSTRUCTIONS = 10
_STEPS = 20
_TOKENS_PER_STEP = 8
_EXCERPT = 200  # characters per point of the map
_MAX_FIELDS, _MAX_VALUES = 12, 10  # metadata fields by which the map is coloured, and colours per field


class TrajectoryBody(BaseModel):
    """Body of `POST /v1/playground/search`."""

    model_config = _STRICT

    question: str
    collection: str | None = None
    instruction: str | None = None
    limit: int = Field(8, ge=1, le=_MAX_HITS)
    steps: int | None = Field(None, description="Refinement steps; the answer has a ranking for each. Default: 20.")
    mode: Literal["hybrid", "dense"] | None = None


class MapBody(BaseModel):
    """Body of `POST /v1/playground/map`."""

    model_config = _STRICT

    collection: str | None = None
    fresh: bool = Field(False, description="Read the collection again, even if its size is as before.")


class CompareBody(BaseModel):
    """Body of `POST /v1/playground/compare`."""

    model_config = _STRICT

    pairs: list[dict[str, Any]] = Field(description="Rows with `question`, and `document` (an id) or `passage`.")
    instructions: list[str] = Field(min_length=1, max_length=_MAX_INSTRUCTIONS)
    collection: str | None = None
    steps: int | None = None


def playground_routes(service: Service, client: QdrantClient) -> APIRouter:
    """The page and its routes over `service` and its store."""
    router = APIRouter()
    settings = service.settings
    maps = _Maps(service, client)

    @router.get("/", include_in_schema=False)
    async def page() -> Response:
        return _serve_file("index.html")

    @router.get("/playground/{name:path}", include_in_schema=False)
    async def file(name: str) -> Response:
        return _serve_file(name)

    @router.get("/v1/playground/settings")
    async def settings_() -> dict[str, Any]:
        spec = service.embedder.spec
        return {
            "model": settings.model,
            "fingerprint": spec.fingerprint,
            "instruction": spec.default_instruction,
            "document_steps": spec.document_steps,
            "max_steps": settings.max_steps,
            "max_hits": _MAX_HITS,
            "max_instructions": _MAX_INSTRUCTIONS,
        }

    @router.post("/v1/playground/search")
    async def search_(body: TrajectoryBody, request: Request) -> Response:
        name = default_name(service, body.collection)
        steps = min(_STEPS, settings.max_steps) if body.steps is None else body.steps
        check_server_steps(steps, settings)

        def work(cancelled: threading.Event) -> bytes:
            embedder = embedder_for(service.embedder, service.backend, cancelled)
            check_exists(client, name)
            used = check_question(embedder, body.question, body.instruction)
            found = search_trajectory(
                body.question,
                collection=name,
                embedder=embedder,
                client=client,
                instruction=body.instruction,
                limit=body.limit,
                steps=steps,
                mode=body.mode,
                top_k=_TOKENS_PER_STEP,
            )
            passages = {hit.id: hit for hits in found.hits for hit in hits}
            return to_json(
                {
                    "question": body.question,
                    "instruction": used,
                    "collection": name,
                    "mode": found.mode,
                    "seconds": {"embed": found.embed_seconds, "rank": found.rank_seconds},
                    "passages": {
                        id: {"document": hit.document, "text": hit.text, "metadata": hit.metadata}
                        for id, hit in passages.items()
                    },
                    "steps": [[{"id": hit.id, "score": hit.score} for hit in hits] for hits in found.hits],
                    "soft_tokens": found.soft_tokens,
                    "vectors": base64.b64encode(found.vectors.astype("<f4").tobytes()).decode(),
                }
            )

        return json_response(await service.calls.run(request, work))

    @router.post("/v1/playground/map")
    async def map_(body: MapBody, request: Request) -> Response:
        name = default_name(service, body.collection)
        return json_response(await service.calls.run(request, lambda _: maps.read(name, fresh=body.fresh)))

    @router.post("/v1/playground/compare")
    async def compare_(body: CompareBody, request: Request) -> Response:
        name = default_name(service, body.collection)
        check_count(len(body.pairs), settings, "pairs")
        if body.steps is not None:
            check_server_steps(body.steps, settings)

        def work(cancelled: threading.Event) -> bytes:
            try:
                require("pytrec_eval", "eval")
            except MissingExtraError as error:
                raise RefusedError(501, str(error), code="missing_extra") from error
            from gircse_rag.adaptation.instructions import group_pairs
            from gircse_rag.adaptation.pairs import read_pairs
            from gircse_rag.serving.comparing import compare

            embedder = embedder_for(service.embedder, service.backend, cancelled)
            check_exists(client, name)
            asked, skipped = group_pairs(read_pairs(body.pairs))
            if not asked:
                raise InputError(f"no pair has a question and its answer: {skipped[0]}")
            wordings = [resolve_instruction(wording) for wording in body.instructions]
            for wording in wordings:
                for question in asked:
                    check_question(embedder, question.text, wording)
            result = compare(asked, wordings, collection=name, embedder=embedder, client=client, steps=body.steps)
            return to_json({**result, "skipped": [str(each) for each in skipped]})

        return json_response(await service.calls.run(request, work))

    return router


class _Maps:
    """Reads a collection's map, and keeps the last one while the collection has not changed.

    A change is seen by the number of points, or because it went through this server. Another program that replaces
    points of a Qdrant server without changing their number is not noticed; `fresh` reads again.
    """

    def __init__(self, service: Service, client: QdrantClient) -> None:
        self._service = service
        self._client = client
        self._lock = threading.Lock()
        self._last: tuple[tuple[str, int, int], bytes] | None = None

    def read(self, name: str, *, fresh: bool) -> bytes:
        """The map as JSON."""
        check_exists(self._client, name)
        with store_errors(self._client):
            check_collection(self._client, name, self._service.embedder.spec)
            count = self._client.count(name).count
        state = (name, count, self._service.writes.completed)
        with self._lock:  # two pages at once read it once
            if self._last is not None and self._last[0] == state and not fresh:
                return self._last[1]
            projection = project(self._client, name, self._service.embedder.dimension)
            content = to_json({"collection": name, "total": count, **_describe(projection)})
            self._last = state, content
        return content


def _describe(projection: Projection) -> dict[str, Any]:
    return {
        "points": [
            {"id": point.id, "document": point.document, "text": point.text[:_EXCERPT]} for point in projection.points
        ],
        "coordinates": projection.coordinates,
        "mean": projection.mean,
        "components": projection.components,
        "explained": projection.explained,
        "fields": _colour_fields(projection.points),
    }


def _colour_fields(points: list[MapPoint]) -> list[dict[str, Any]]:
    """Metadata fields with few values: {name, values, codes}; codes[i] is the index of point i's value, or -1.

    The rarest values beyond `_MAX_VALUES` have the code -1 too, and so has a point without the field.
    """
    names = Counter(name for point in points for name in point.metadata if name != "_chunk")
    fields = []
    for name, _ in names.most_common():
        values = [point.metadata.get(name) for point in points]
        words = [str(value) if isinstance(value, str | int | float) else None for value in values]
        counts = Counter(word for word in words if word is not None)
        if len(counts) < 2 or (len(counts) > _MAX_VALUES and len(counts) > len(points) / 2):
            continue  # one colour, or nearly one per point
        chosen = [word for word, _ in counts.most_common(_MAX_VALUES)]
        index = {word: code for code, word in enumerate(chosen)}
        codes = np.array([-1 if word is None else index.get(word, -1) for word in words], dtype=np.int64)
        fields.append({"name": name, "values": [word[:80] for word in chosen], "codes": codes})
        if len(fields) == _MAX_FIELDS:
            break
    return fields


def _serve_file(name: str) -> Response:
    """A file of the page. The folder is small and read each time, so no cache can be stale.

    Raises:
        RefusedError: 404, there is none of that name.
    """
    known = {path.relative_to(_FOLDER).as_posix(): path for path in _FOLDER.rglob("*") if path.suffix in _TYPES}
    if name not in known:
        raise RefusedError(404, "not found: the playground has no such file", code="not_found")
    path = known[name]
    return Response(path.read_bytes(), headers=_HEADERS, media_type=_TYPES[path.suffix])
