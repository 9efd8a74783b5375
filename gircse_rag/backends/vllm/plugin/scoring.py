"""`/score` and `/rerank`: the query carries its instruction, the documents are bare.

vLLM would embed both sides as documents. The requests are vLLM's, with two fields of ours:

    instruction   what to look for, as in /v1/embeddings
    steps         K of the queries; documents have the spec's
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase
from vllm.entrypoints.pooling.base.io_processor import PoolingIOProcessor
from vllm.entrypoints.pooling.embed.protocol import EmbeddingCompletionRequest
from vllm.entrypoints.pooling.scoring.io_processor import BiEncoderIOProcessor
from vllm.entrypoints.pooling.scoring.serving import ServingScores

from gircse_rag.backends.vllm.plugin.llm_inputs import render, with_steps
from gircse_rag.backends.vllm.plugin.settings import Settings
from gircse_rag.errors import InputError


class GircseScoringIOProcessor(BiEncoderIOProcessor):
    """Turns a request's body into prompts of token ids: its queries, then its documents."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.settings = Settings.of(self.vllm_config)
        # not the renderer's own tokenizer, which its threads use at the same time
        self.fast_tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(self.model_config.tokenizer)

    def get_request_factory_online(self, ctx: Any) -> Any:
        request = ctx.request
        queries, documents = self._render(request)
        ctx.n_queries = len(queries)
        steps = (request.model_extra or {}).get("steps")
        steps_per_prompt = [steps for _ in queries] + [None for _ in documents]
        # vLLM folds the instruction into the arguments of a chat template, which there is none of.
        ctx.prompt_extras = {key: value for key, value in ctx.prompt_extras.items() if key != "chat_template_kwargs"}
        # The base class makes the prompts of a request for embeddings; the response needs the request itself.
        ctx.request = EmbeddingCompletionRequest(model=request.model, input=queries + documents)
        make_inputs = partial(PoolingIOProcessor.get_request_factory_online, self, ctx)
        try:
            return with_steps(self.settings, queries + documents, steps_per_prompt, ctx.pooling_params, make_inputs)
        finally:
            ctx.request = request

    def _render(self, request: Any) -> tuple[list[list[int]], list[list[int]]]:
        """Token ids of the queries and of the documents."""
        if request.max_tokens_per_query or request.max_tokens_per_doc:
            raise InputError(
                "max_tokens_per_query and max_tokens_per_doc are not supported; truncate_prompt_tokens=-1 cuts texts "
                "that are longer than the model reads"
            )
        data = self.valid_inputs_online(request)
        limit, spec = request.truncate_prompt_tokens, self.settings.spec
        if limit is not None and limit > 0:  # -1 means vLLM's maximum length
            spec = replace(spec, max_length=min(spec.max_length, limit))
        truncate = limit is not None
        queries = render(self.fast_tokenizer, spec, data.data_1, "query", request.instruction, truncate=truncate)
        return queries, render(self.fast_tokenizer, spec, data.data_2, "document", None, truncate=truncate)


class GircseScores(ServingScores):
    """vLLM's scoring API with GircseScoringIOProcessor."""

    def init_io_processor(self, *args: Any, **kwargs: Any) -> GircseScoringIOProcessor:
        return GircseScoringIOProcessor(*args, **kwargs)
