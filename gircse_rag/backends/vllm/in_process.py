"""VllmBackend: an engine of vLLM in this process, behind the Backend protocol."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from transformers import AutoConfig

from gircse_rag.backend import Refinement, Request
from gircse_rag.backends.vllm.plugin.settings import STEPS
from gircse_rag.errors import GircseError, InputError, first_line, require
from gircse_rag.spec import MAX_STEPS, EmbeddingSpec

BATCH = 512
"""Requests handed to vLLM at once; it decides how many of them run."""


class VllmBackend:
    """Refines requests with `vllm.LLM`, which keeps to one caller at a time.

    vLLM gives back the last embedding only: `steps="auto"`, the trajectory and the heaviest soft tokens are refused.

    Args:
        folder: what `gircse export` wrote.
        spec: its vector space.
        options: any of `vllm.LLM`'s. Unless given, max_model_len is the longest prompt plus MAX_STEPS, and on a CPU
            nothing is compiled, which takes a minute there and gains little.

    Raises:
        MissingExtraError: vLLM is not installed.
        GircseError: vLLM cannot run this model here; says why.
    """

    def __init__(self, folder: Path, spec: EmbeddingSpec, **options: Any) -> None:
        # The engine in this process, not in one it starts: a script then needs no `if __name__ == "__main__"`.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        vllm = require("vllm", "vllm")
        self._make_params = vllm.PoolingParams
        options.setdefault("disable_log_stats", True)
        options.setdefault("enforce_eager", require("vllm.platforms", "vllm").current_platform.is_cpu())
        if "max_model_len" not in options:
            config = AutoConfig.from_pretrained(folder)
            options["max_model_len"] = min(config.max_position_embeddings, spec.max_length + MAX_STEPS)
        try:
            self._llm = vllm.LLM(model=str(folder), runner="pooling", **options)
        except (ValueError, RuntimeError, OSError) as error:
            raise GircseError(f"vLLM could not start: {reason(error)}") from error
        self._window = int(self._llm.model_config.max_model_len)
        self._dimension = spec.dimension
        self._lock = threading.Lock()
        self._closed = False

    @property
    def dimension(self) -> int:
        return self._dimension

    def refine(self, requests: Iterable[Request]) -> Iterator[tuple[int, Refinement | GircseError]]:
        numbered = enumerate(requests)
        while batch := list(islice(numbered, BATCH)):
            good: list[tuple[int, Request]] = []
            for index, request in batch:
                try:
                    check(request, self._window)
                except InputError as error:
                    yield index, error
                else:
                    good.append((index, request))
            vectors = self._embed([request for _, request in good])
            for (index, request), vector in zip(good, vectors, strict=True):
                yield index, refinement(vector, request.steps)

    def close(self) -> None:
        with self._lock:
            if not self._closed:
                self._closed = True
                self._llm.llm_engine.engine_core.shutdown()
                del self._llm

    def _embed(self, requests: list[Request]) -> list[NDArray[np.float32]]:
        with self._lock:
            if self._closed:
                raise GircseError("this embedder is closed; load a new one with Embedder.from_pretrained")
            if not requests:
                return []
            outputs = self._llm.encode(
                [{"prompt_token_ids": list(request.token_ids)} for request in requests],
                pooling_params=[self._make_params(extra_kwargs={STEPS: request.steps}) for request in requests],
                pooling_task="embed",
                use_tqdm=False,
            )
        if len(outputs) != len(requests):  # else vectors would go to other texts
            raise GircseError(
                f"vLLM answered {len(outputs)} requests where {len(requests)} were asked, some of a call that was "
                "interrupted; embed these texts again"
            )
        return [output.outputs.data.float().numpy() for output in outputs]


def reason(error: Exception) -> str:
    """The telling line of an error of vLLM's: pydantic's first one only counts."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return ": ".join([*map(str, first["loc"]), first["msg"]])
    return first_line(error)


def check(request: Request, window: int) -> None:
    """Refuse what vLLM would not compute, before it is handed over.

    Raises:
        InputError: it does not fit the window, or asks for more than the last embedding.
    """
    if request.tolerance is not None or request.top_k or request.trajectory:
        raise InputError(
            "the backend 'vllm' returns the last embedding only: no steps='auto', trajectory or soft_tokens; use "
            "backend='paged' for those"
        )
    length = len(request.token_ids)
    if not 0 < length <= window - request.steps:
        raise InputError(
            f"a prompt of {length} tokens and {request.steps} refinement steps do not fit vLLM's max_model_len of "
            f"{window}; use fewer steps or a smaller max_length"
        )


def refinement(vector: NDArray[np.float32], steps: int) -> Refinement | GircseError:
    """A result of which only the last step is known; the rows before it are NaN."""
    if not np.isfinite(vector).all():
        return GircseError("the model produced NaN or infinity for this text; try dtype='float32'")
    trajectory = np.full((steps, len(vector)), np.nan, dtype=np.float32)
    trajectory[-1] = vector
    return Refinement(trajectory)
