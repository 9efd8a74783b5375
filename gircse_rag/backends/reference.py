"""The paper's loop, one text at a time: obvious, slow, and the yardstick every other backend is held to."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from gircse_rag.backend import Refinement, Request, check_request
from gircse_rag.errors import GircseError, InputError
from gircse_rag.refinement import pool, settled, soft_token


class ReferenceBackend:
    """Runs Hugging Face's own model with its own KV cache on a single sequence at a time.

    A batch of one needs no padding, so a vector cannot depend on what else was in the call.

    Args:
        model: a causal LM in eval mode, on its device; it is used as it is and never changed.
        temperature: tau of the soft token's softmax.
    """

    def __init__(self, model: PreTrainedModel, *, temperature: float = 1.0) -> None:
        self._model = model
        self._temperature = temperature
        self._vocabulary, self._dimension = map(int, model.get_input_embeddings().weight.shape)
        self._window = int(model.config.max_position_embeddings)
        # One forward at a time: more would only fight for the same cores. A signal's handler may close in its middle.
        self._lock = threading.RLock()
        self._closed = False

    @property
    def dimension(self) -> int:
        return self._dimension

    def refine(self, requests: Iterable[Request]) -> Iterator[tuple[int, Refinement | GircseError]]:
        for index, request in enumerate(requests):
            with self._lock:
                if self._closed:
                    raise GircseError("this embedder is closed; load a new one with Embedder.from_pretrained")
                outcome = self._outcome(request)
            yield index, outcome

    def close(self) -> None:
        self._closed = True  # before the lock: whoever computes in another thread ends with the text it is at
        with self._lock:
            if hasattr(self, "_model"):
                del self._model

    def _outcome(self, request: Request) -> Refinement | GircseError:
        try:
            return self._refine_one(request)
        except GircseError as error:
            return error
        except Exception as error:  # such as no memory left
            failure = GircseError(f"the forward pass failed: {type(error).__name__}: {error}")
            failure.__cause__ = error
            return failure

    @torch.inference_mode()
    def _refine_one(self, request: Request) -> Refinement:
        check_request(request, self._vocabulary)
        length = len(request.token_ids)
        if length > self._window - request.steps:
            raise InputError(
                f"a prompt of {length} tokens and {request.steps} refinement steps do not fit the model's window of "
                f"{self._window} positions; use fewer steps or a smaller max_length"
            )
        body = self._model.model
        head = self._model.get_output_embeddings().weight
        embeddings = self._model.get_input_embeddings().weight
        cache = DynamicCache(config=self._model.config)

        prompt = torch.tensor([request.token_ids], device=embeddings.device)
        hidden = body(input_ids=prompt, past_key_values=cache, use_cache=True).last_hidden_state[0, -1:]  # h_0
        states: list[Tensor] = []
        trajectory = hidden.new_empty(0)
        heaviest: list[list[tuple[int, float]]] = []
        for step in range(request.steps):
            token = soft_token(hidden, head, embeddings, self._temperature, top_k=request.top_k)
            if token.token_ids is not None and token.weights is not None:
                heaviest.append(list(zip(token.token_ids[0].tolist(), token.weights[0].tolist(), strict=True)))
            soft = token.embedding.to(embeddings.dtype)
            hidden = body(
                inputs_embeds=soft[None],
                position_ids=torch.tensor([[length + step]], device=embeddings.device),
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state[0]
            states.append(hidden[0])
            trajectory = pool(torch.stack(states))
            if request.tolerance is not None and step and settled(trajectory[-2], trajectory[-1], request.tolerance):
                break
        if not torch.isfinite(trajectory).all():
            raise GircseError("the model produced NaN or infinity for this text; try dtype='float32'")
        return Refinement(
            np.asarray(trajectory.float().cpu().numpy(), dtype=np.float32),
            heaviest if request.top_k else None,
        )
