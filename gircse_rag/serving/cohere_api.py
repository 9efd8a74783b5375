"""Cohere's `POST /v2/embed`. `input_type` chooses the role; our instruction and steps may be added."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from gircse_rag.errors import InputError
from gircse_rag.prompts import Role
from gircse_rag.serving.embedding import Embedded, Task
from gircse_rag.serving.openai_api import (
    Steps,
    Texts,
    as_inputs,
    base64_vectors,
    json_response,
    to_json,
)
from gircse_rag.serving.service import Service

_ROLES: dict[str, Role] = {
    "search_query": "query",
    "search_document": "document",
    "classification": "symmetric",
    "clustering": "symmetric",
}


class CohereBody(BaseModel):
    """Body of `POST /v2/embed`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    texts: Texts
    model: str | None = None
    input_type: Literal["search_query", "search_document", "classification", "clustering"]
    embedding_types: list[Literal["float", "base64"]] | None = None
    truncate: Literal["NONE", "END"] = Field("END", description="END cuts longer texts and says so in meta.warnings.")
    max_tokens: int | None = Field(None, ge=1)
    output_dimension: int | None = None
    instruction: str | None = None
    steps: Steps = None


def cohere_routes(service: Service) -> APIRouter:
    """The route over `service`."""
    router = APIRouter()

    @router.post("/v2/embed")
    async def embed(body: CohereBody, request: Request) -> Response:
        service.check_model(body.model)
        if not isinstance(body.texts, list):
            raise InputError("texts must be a list of texts")
        task = Task(
            inputs=as_inputs(body.texts),
            role=_ROLES[body.input_type],
            instruction=body.instruction,
            steps=body.steps,
            max_length=body.max_tokens,
            truncate=body.truncate == "END",
            dimensions=body.output_dimension,
        )

        def render(result: Embedded) -> bytes:
            kinds = body.embedding_types or ["float"]
            forms: dict[str, Any] = {}
            if "float" in kinds:
                forms["float"] = list(result.vectors)
            if "base64" in kinds:
                forms["base64"] = base64_vectors(result)
            meta: dict[str, Any] = {
                "api_version": {"version": "2"},
                "billed_units": {"input_tokens": result.prompt_tokens},
            }
            if result.truncated:
                positions = ", ".join(map(str, result.truncated[:10])) + (", ..." if len(result.truncated) > 10 else "")
                meta["warnings"] = [f"texts were cut at their end, at positions {positions}"]
            answer = {"id": request.scope["gircse_request_id"], "embeddings": forms, "texts": body.texts, "meta": meta}
            return to_json({**answer, "response_type": "embeddings_by_type"})

        return json_response(await service.embed(request, task, render))

    return router
