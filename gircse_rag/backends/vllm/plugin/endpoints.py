"""Steps, role and instruction over HTTP: `/v1/embeddings` with three more fields, and `/v1/gircse`.

    POST /v1/embeddings   as OpenAI's, and besides
        role          "query", "document" or "symmetric"; left out: "query" with an instruction, "document" without
        instruction   what to look for
        steps         K for all inputs, or a list with one an input
    GET  /v1/gircse       the spec of the vector space, its fingerprint and the window: what a client must agree with

Texts are rendered and tokenised here as everywhere else; lists of token ids are taken as they are. This is a vLLM
endpoint plugin, loaded where VLLM_PLUGINS names gircse (`gircse serve` sees to it). Without it `steps` and the rest
would be ignored.
"""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import Any

from fastapi.responses import JSONResponse
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from vllm.entrypoints.pooling.embed.io_processor import EmbedIOProcessor
from vllm.entrypoints.pooling.embed.protocol import EmbeddingCompletionRequest
from vllm.entrypoints.pooling.embed.serving import ServingEmbedding

import gircse_rag
from gircse_rag.backends.vllm.plugin.llm_inputs import render
from gircse_rag.backends.vllm.plugin.settings import STEPS, Settings
from gircse_rag.errors import CheckpointError, InputError
from gircse_rag.spec import EmbeddingSpec


class GircseIOProcessor(EmbedIOProcessor):
    """From a request's body to prompts of token ids, each with its own number of steps."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.settings = Settings.of(self.vllm_config)
        # not the renderer's own, which its threads use at the same time
        self.fast_tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(self.model_config.tokenizer)

    def get_request_factory_online(self, ctx: Any) -> Any:
        request = ctx.request
        if not isinstance(request, EmbeddingCompletionRequest):
            raise InputError("GIRCSE embeds texts: POST them to /v1/embeddings as `input`, not as messages or images")
        extra = request.model_extra or {}
        prompts = self._prompts(request, extra)
        steps = extra.get("steps")
        wanted = steps if isinstance(steps, list) else [steps] * len(prompts)
        if len(wanted) != len(prompts):
            raise InputError(f"steps has {len(wanted)} entries for {len(prompts)} inputs")
        given = [{} if value is None else {STEPS: value} for value in wanted]
        for prompt, value in zip(prompts, given, strict=True):
            self.settings.steps_of(value, len(prompt))
        ctx.request = request.model_copy(update={"input": prompts, "truncate_prompt_tokens": None})
        made = super().get_request_factory_online(ctx)
        for one, value in zip(made, given, strict=True):
            one["params"] = copy(ctx.pooling_params)
            one["params"].extra_kwargs = value
        return made

    def _prompts(self, request: Any, extra: dict[str, Any]) -> list[list[int]]:
        instruction = extra.get("instruction")
        role: Any = extra.get("role") or ("document" if instruction is None else "query")
        inputs = request.input
        if not inputs:
            raise InputError("input is empty; pass at least one text")
        if isinstance(inputs, str) or isinstance(inputs[0], int):
            inputs = [inputs]
        if isinstance(inputs[0], list):
            if "role" in extra or instruction is not None:
                raise InputError("input is token ids, embedded as they are; role and instruction are for texts")
            return list(inputs)
        cut = request.truncate_prompt_tokens
        spec = _shortened(self.settings.spec, cut)
        return render(self.fast_tokenizer, spec, inputs, role, instruction, may_cut=cut is not None)


def _shortened(spec: EmbeddingSpec, length: int | None) -> EmbeddingSpec:
    if length is None or length < 1:  # -1 is vLLM's "as long as the model takes"
        return spec
    return replace(spec, max_length=min(spec.max_length, length))


class GircseServing(ServingEmbedding):
    """vLLM's embedding API over GircseIOProcessor."""

    def init_io_processor(self, *args: Any, **kwargs: Any) -> GircseIOProcessor:
        return GircseIOProcessor(*args, **kwargs)


class GircseEndpoints:
    """What vLLM's API server loads, see `vllm.plugins.endpoint_plugins`."""

    name = "gircse"
    required_tasks = ("embed",)

    def __init__(self) -> None:
        self._known: dict[str, Any] | None = None

    def attach_router(self, app: Any) -> None:
        async def gircse() -> JSONResponse:
            if self._known is None:
                return JSONResponse({"error": {"message": "this server's model is no GIRCSE model"}}, status_code=404)
            return JSONResponse(self._known)

        app.add_api_route("/v1/gircse", gircse, methods=["GET"])

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        if engine_client is None or state.serving_embedding is None:
            return
        try:
            settings = Settings.of(engine_client.vllm_config)
        except CheckpointError:  # another model, which vLLM serves its own way
            return
        plain = state.serving_embedding
        state.serving_embedding = GircseServing(
            engine_client,
            state.openai_serving_models,
            request_logger=plain.request_logger,
            chat_template_config=plain.chat_template_config,
        )
        self._known = {
            "spec": settings.spec.to_dict(),
            "fingerprint": settings.spec.fingerprint,
            "dtype": str(engine_client.vllm_config.model_config.dtype).removeprefix("torch."),
            "window": settings.window,
            "version": gircse_rag.__version__,
        }
