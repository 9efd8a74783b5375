"""The `POST /embed` of Hugging Face's text-embeddings-inference, with our role, instruction and steps."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from gircse_rag.errors import InputError
from gircse_rag.prompts import Role
from gircse_rag.serving.embedding import Task
from gircse_rag.serving.openai_api import Steps, Texts, as_inputs, json_response, to_json
from gircse_rag.serving.service import Service


class TeiBody(BaseModel):
    """Body of `POST /embed`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    inputs: Texts
    prompt_name: Literal["query", "document"] | None = Field(None, description="Another name for the role.")
    normalize: bool | None = Field(None, description="Vectors always have unit length; false is refused.")
    truncate: bool | None = Field(None, description="Cut longer texts at their end.")
    truncation_direction: Literal["Right", "right"] | None = None
    dimensions: int | None = None
    role: Role | None = None
    instruction: str | None = None
    steps: Steps = None


def tei_routes(service: Service) -> APIRouter:
    """The route over `service`."""
    router = APIRouter()

    @router.post("/embed")
    async def embed(body: TeiBody, request: Request) -> Response:
        if body.normalize is False:
            raise InputError("GIRCSE's vectors have unit length by definition; leave `normalize` out")
        if body.role is not None and body.prompt_name not in (None, body.role):
            raise InputError(f"role {body.role!r} and prompt_name {body.prompt_name!r} differ; send one of them")
        task = Task(
            inputs=as_inputs(body.inputs),
            role=body.role or body.prompt_name,
            instruction=body.instruction,
            steps=body.steps,
            truncate=bool(body.truncate),
            dimensions=body.dimensions,
        )
        return json_response(await service.embed(request, task, lambda result: to_json(list(result.vectors))))

    return router
