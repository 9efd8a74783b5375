"""Steps, role and instruction over HTTP: `/v1/embeddings` with four more fields, and `/v1/gircse`.

    POST /v1/embeddings   OpenAI's fields, and
        role          "query", "document" or "symmetric"; default: "query" with an instruction, else "document"
        instruction   what to look for: a sentence, or a name that `gircse instructions` lists
        steps         K for all inputs, or a list with one K per input
        tokenizer     for lists of token ids: the spec's tokenizer_hash
    GET  /v1/gircse       the spec of the vector space, its fingerprint and the window, for clients to check

Texts are rendered and tokenised here as everywhere else. Lists of token ids are used unchanged, but only if the request
names the model's tokenizer, or the server was started with --accept-token-ids. LangChain's OpenAIEmbeddings sends ids
of OpenAI's tokenizer, which are other words here. `/score` and `/rerank` are in `scoring`.

This is a vLLM endpoint plugin, loaded if VLLM_PLUGINS contains gircse (`gircse serve` sets it). Without it vLLM ignores
these fields.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from typing import Any

from fastapi.responses import JSONResponse
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from vllm.entrypoints.pooling.embed.io_processor import EmbedIOProcessor
from vllm.entrypoints.pooling.embed.protocol import EmbeddingCompletionRequest
from vllm.entrypoints.pooling.embed.serving import ServingEmbedding

import gircse_rag
from gircse_rag.backends.vllm.plugin.llm_inputs import render, with_steps
from gircse_rag.backends.vllm.plugin.scoring import GircseScores
from gircse_rag.backends.vllm.plugin.settings import Settings
from gircse_rag.errors import CheckpointError, InputError
from gircse_rag.tokens import TOKEN_IDS_REFUSED

ACCEPT_TOKEN_IDS = "GIRCSE_ACCEPT_TOKEN_IDS"
"""Environment variable that `gircse serve --accept-token-ids` sets."""


class GircseIOProcessor(EmbedIOProcessor):
    """Turns a request's body into prompts of token ids, each with its own number of steps."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.settings = Settings.of(self.vllm_config)
        # not the renderer's own tokenizer, which its threads use at the same time
        self.fast_tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(self.model_config.tokenizer)

    def get_request_factory_online(self, ctx: Any) -> Any:
        request = ctx.request
        if not isinstance(request, EmbeddingCompletionRequest):
            raise InputError("GIRCSE embeds texts: POST them to /v1/embeddings as `input`, not as messages or images")
        extra = request.model_extra or {}
        prompts = self._prompts(request, extra)
        steps = extra.get("steps")
        steps_per_input = steps if isinstance(steps, list) else [steps] * len(prompts)
        if len(steps_per_input) != len(prompts):
            raise InputError(f"steps has {len(steps_per_input)} entries for {len(prompts)} inputs")
        ctx.request = request.model_copy(update={"input": prompts, "truncate_prompt_tokens": None})
        make_inputs = partial(super().get_request_factory_online, ctx)
        return with_steps(self.settings, prompts, steps_per_input, ctx.pooling_params, make_inputs)

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
                raise InputError("input is token ids, which are embedded unchanged; role and instruction are for texts")
            self._check_tokenizer(extra.get("tokenizer"))
            return list(inputs)
        limit = request.truncate_prompt_tokens
        spec = self.settings.spec
        if limit is not None and limit > 0:  # -1 means vLLM's maximum length
            spec = replace(spec, max_length=min(spec.max_length, limit))
        return render(self.fast_tokenizer, spec, inputs, role, instruction, truncate=limit is not None)

    def _check_tokenizer(self, tokenizer: object) -> None:
        """Refuse token ids that may be those of another tokenizer."""
        if tokenizer != self.settings.spec.tokenizer_hash and not os.environ.get(ACCEPT_TOKEN_IDS):
            raise InputError(TOKEN_IDS_REFUSED)


class GircseServing(ServingEmbedding):
    """vLLM's embedding API with GircseIOProcessor."""

    def init_io_processor(self, *args: Any, **kwargs: Any) -> GircseIOProcessor:
        return GircseIOProcessor(*args, **kwargs)


class GircseEndpoints:
    """The endpoint plugin that vLLM's API server loads, see `vllm.plugins.endpoint_plugins`."""

    name = "gircse"
    required_tasks = ("embed",)

    def __init__(self) -> None:
        self._info: dict[str, Any] | None = None

    def attach_router(self, app: Any) -> None:
        async def gircse() -> JSONResponse:
            if self._info is None:
                return JSONResponse({"error": {"message": "this server's model is no GIRCSE model"}}, status_code=404)
            return JSONResponse(self._info)

        app.add_api_route("/v1/gircse", gircse, methods=["GET"])

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        if engine_client is None or state.serving_embedding is None:
            return
        try:
            settings = Settings.of(engine_client.vllm_config)
        except CheckpointError:  # not one of our models: vLLM serves it as usual
            return
        original = state.serving_embedding
        state.serving_embedding = GircseServing(
            engine_client,
            state.openai_serving_models,
            request_logger=original.request_logger,
            chat_template_config=original.chat_template_config,
        )
        if (scores := getattr(state, "serving_scores", None)) is not None:
            state.serving_scores = GircseScores(
                engine_client,
                state.openai_serving_models,
                supported_tasks=("embed",),
                request_logger=scores.request_logger,
                chat_template_config=scores.chat_template_config,
            )
        self._info = {
            "spec": settings.spec.to_dict(),
            "fingerprint": settings.spec.fingerprint,
            "dtype": str(engine_client.vllm_config.model_config.dtype).removeprefix("torch."),
            "window": settings.window,
            "version": gircse_rag.__version__,
        }
