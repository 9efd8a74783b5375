"""The paper's loop, one text at a time: simple, slow, and the standard that every other backend is compared with."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator

import torch
from transformers import DynamicCache, PreTrainedModel

from gircse_rag.backend import CLOSED, NOT_FINITE, Refinement, Request, check_process, check_request
from gircse_rag.errors import GircseError
from gircse_rag.refinement import pool, settled, soft_token


class ReferenceBackend:
    """Runs Hugging Face's own model with its own KV cache, one sequence at a time.

    A batch of one needs no padding, so a vector cannot depend on other texts of the call.

    Args:
        model: a causal LM in eval mode, on its device; never modified.
        temperature: tau of the soft token's softmax.
        pools_prompt: pool h_0..h_{K-1} (LaSER) instead of h_1..h_K.
    """

    def __init__(self, model: PreTrainedModel, *, temperature: float = 1.0, pools_prompt: bool = False) -> None:
        self._model = model
        self._pools_prompt = pools_prompt
        self._temperature = temperature
        self._vocabulary, self._dimension = map(int, model.get_input_embeddings().weight.shape)
        self._window = int(model.config.max_position_embeddings)
        # One forward at a time, because parallel ones would compete for the same cores. Reentrant, because a signal
        # handler may call close() during a forward.
        self._lock = threading.RLock()
        self._closed = False
        self._process = os.getpid()

    @property
    def dimension(self) -> int:
        return self._dimension

    def refine(self, requests: Iterable[Request]) -> Iterator[tuple[int, Refinement | GircseError]]:
        for index, request in enumerate(requests):
            check_process(self._process)
            with self._lock:
                if self._closed:
                    raise GircseError(CLOSED)
                outcome: Refinement | GircseError
                try:
                    outcome = self._refine_one(request)
                except GircseError as error:
                    outcome = error
                except Exception as error:  # for example out of memory
                    outcome = GircseError(f"the forward pass failed: {type(error).__name__}: {error}")
                    outcome.__cause__ = error
            yield index, outcome

    def close(self) -> None:
        if os.getpid() != self._process:
            return
        self._closed = True  # before taking the lock: calls of other threads then end after their current text
        with self._lock:
            if hasattr(self, "_model"):
                del self._model

    @torch.inference_mode()
    def _refine_one(self, request: Request) -> Refinement:
        check_request(request, self._vocabulary, self._window)
        body = self._model.model
        head = self._model.get_output_embeddings().weight
        embeddings = self._model.get_input_embeddings().weight
        cache = DynamicCache(config=self._model.config)

        prompt = torch.tensor([request.token_ids], device=embeddings.device)
        hidden = body(input_ids=prompt, past_key_values=cache, use_cache=True).last_hidden_state[0, -1:]  # h_0
        states = [hidden[0]] if self._pools_prompt else []
        trajectory = pool(hidden)
        top_tokens: list[list[tuple[int, float]]] = []
        for step in range(request.steps - len(states)):
            token = soft_token(hidden, head, embeddings, self._temperature, top_k=request.top_k)
            if token.token_ids is not None and token.weights is not None:
                top_tokens.append(list(zip(token.token_ids[0].tolist(), token.weights[0].tolist(), strict=True)))
            soft = token.embedding.to(embeddings.dtype)
            hidden = body(
                inputs_embeds=soft[None],
                position_ids=torch.tensor([[len(request.token_ids) + step]], device=embeddings.device),
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state[0]
            states.append(hidden[0])
            trajectory = pool(torch.stack(states))
            if request.tolerance is None or len(states) < 2:
                continue
            if settled(trajectory[-2], trajectory[-1], request.tolerance):
                break
        if not torch.isfinite(trajectory).all():
            raise GircseError(NOT_FINITE)
        return Refinement(trajectory.float().cpu().numpy(), top_tokens if request.top_k else None)
