"""OpenAI's embeddings API, with our role, instruction and steps; and what `Embedder(url=)` asks.

POST /v1/embeddings     as on `gircse serve --backend vllm` (docs/operate/serve.md)
GET  /v1/models         the one model
GET  /v1/gircse         spec of the vector space, its fingerprint and the window
"""

from __future__ import annotations

import base64
import time
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

import gircse_rag
from gircse_rag.errors import InputError
from gircse_rag.prompts import Role
from gircse_rag.serving.embedding import Embedded, Task
from gircse_rag.serving.service import Service

_TEXTS = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
Texts = Annotated[Any, WithJsonSchema(_TEXTS), Field(description="One text or a list of them.")]
_STEPS = {"anyOf": [{"type": "integer"}, {"type": "array", "items": {"type": "integer"}}, {"enum": ["auto", None]}]}
Steps = Annotated[Any, WithJsonSchema(_STEPS), Field(description='Refinement steps: K, one K per input, or "auto".')]


class EmbeddingsBody(BaseModel):
    """Body of `POST /v1/embeddings`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    input: Texts
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    user: str | None = Field(None, description="Ignored.")
    role: Role | None = None
    instruction: str | None = None
    steps: Steps = None
    truncate_prompt_tokens: int | None = Field(None, ge=-1, description="Cut longer texts; -1 at the model's limit.")
    tokenizer: str | None = Field(None, description="For token ids: the tokenizer_hash of /v1/gircse.")
    endianness: Literal["little", "native"] = Field("little", description="Of base64; always little.")


def openai_routes(service: Service) -> APIRouter:
    """The routes over `service`."""
    router = APIRouter()
    started = int(time.time())

    @router.post("/v1/embeddings")
    async def embeddings(body: EmbeddingsBody, request: Request) -> Response:
        service.check_model(body.model)
        limit = body.truncate_prompt_tokens
        if limit == 0:
            raise InputError("truncate_prompt_tokens must be -1 or at least 1, not 0")
        task = Task(
            inputs=as_inputs(body.input, token_ids=True),
            role=body.role,
            instruction=body.instruction,
            steps=body.steps,
            max_length=None if limit == -1 else limit,
            truncate=limit is not None,
            tokenizer=body.tokenizer,
            dimensions=body.dimensions,
        )

        def render(result: Embedded) -> bytes:
            vectors = base64_vectors(result) if body.encoding_format == "base64" else result.vectors
            return to_json(
                {
                    "object": "list",
                    "data": [
                        {"object": "embedding", "index": index, "embedding": vector}
                        for index, vector in enumerate(vectors)
                    ],
                    "model": service.settings.model,
                    "usage": {"prompt_tokens": result.prompt_tokens, "total_tokens": result.prompt_tokens},
                }
            )

        return json_response(await service.embed(request, task, render))

    @router.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_describe_model()]}

    @router.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        service.check_model(name)
        return _describe_model()

    def _describe_model() -> dict[str, Any]:
        return {"id": service.settings.model, "object": "model", "created": started, "owned_by": "gircse-rag"}

    @router.get("/v1/gircse")
    async def gircse() -> dict[str, Any]:
        spec = service.embedder.spec
        return {
            "spec": spec.to_dict(),
            "fingerprint": spec.fingerprint,
            "dtype": spec.dtype,
            "window": service.backend.window,
            "version": gircse_rag.__version__,
        }

    return router


def as_inputs(value: Any, *, token_ids: bool = False) -> list[Any]:
    """A list of texts, or, where `token_ids` may be sent, a list of lists of ids. One input becomes a list of one.

    Raises:
        InputError: it is neither.
    """
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        if token_ids and value and type(value[0]) is int:
            return [value]
        if not value or isinstance(value[0], str) or (token_ids and isinstance(value[0], list)):
            return value
    raise InputError("the input must be a text or a list of texts")


def base64_vectors(result: Embedded) -> list[str]:
    """Each vector as base64 of little-endian float32."""
    return [base64.b64encode(row.tobytes()).decode() for row in result.vectors.astype("<f4")]


def to_json(value: Any) -> bytes:
    """JSON in which every float32 is the shortest number that reads back as the same float32."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def json_response(content: bytes) -> Response:
    """A response of `to_json`."""
    return Response(content, media_type="application/json")
