"""VllmBackend: a vLLM engine in this process, behind the Backend protocol."""

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

from gircse_rag.backend import CLOSED, NOT_FINITE, Refinement, Request, check_process
from gircse_rag.backends.vllm.plugin.settings import STEPS
from gircse_rag.errors import GircseError, InputError, first_line, require
from gircse_rag.spec import MAX_STEPS, EmbeddingSpec

BATCH = 512
"""Requests handed to vLLM at once; vLLM decides how many of them run."""

Numbered = list[tuple[int, Request]]
Outcomes = list[tuple[int, Refinement | GircseError]]


class VllmBackend:
    """Refines requests with `vllm.LLM`, for one caller at a time.

    vLLM returns the last embedding only, so `steps="auto"`, trajectories and soft tokens are refused.

    Args:
        folder: a folder written by `gircse export`.
        spec: its vector space.
        options: arguments of `vllm.LLM`. Defaults: max_model_len is the longest prompt plus MAX_STEPS; on a CPU
            nothing is compiled, because compiling takes a minute and gains little.

    Raises:
        MissingExtraError: vLLM is not installed.
        GircseError: vLLM cannot run this model here; says why.
    """

    def __init__(self, folder: Path, spec: EmbeddingSpec, **options: Any) -> None:
        # Run the engine in this process: with a child process, scripts would need `if __name__ == "__main__"`.
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
            raise GircseError(f"vLLM could not start: {explain_error(error)}") from error
        self._window = int(self._llm.model_config.max_model_len)
        self._dimension = spec.dimension
        self._lock = threading.Lock()
        self._closed = False
        self._process = os.getpid()

    @property
    def dimension(self) -> int:
        return self._dimension

    def refine(self, requests: Iterable[Request]) -> Iterator[tuple[int, Refinement | GircseError]]:
        numbered = enumerate(requests)
        while batch := list(islice(numbered, BATCH)):
            good, refused = split_supported(batch, self._window)
            yield from refused
            vectors = self._embed([request for _, request in good])
            for (index, request), vector in zip(good, vectors, strict=True):
                yield index, last_step_refinement(vector, request.steps)

    def close(self) -> None:
        if os.getpid() != self._process:
            return
        with self._lock:
            if not self._closed:
                self._closed = True
                self._llm.llm_engine.engine_core.shutdown()
                del self._llm

    def _embed(self, requests: list[Request]) -> list[NDArray[np.float32]]:
        check_process(self._process)
        with self._lock:
            if self._closed:
                raise GircseError(CLOSED)
            if not requests:
                return []
            outputs = self._llm.encode(
                [{"prompt_token_ids": list(request.token_ids)} for request in requests],
                pooling_params=[self._make_params(extra_kwargs={STEPS: request.steps}) for request in requests],
                pooling_task="embed",
                use_tqdm=False,
            )
        if len(outputs) != len(requests):  # otherwise vectors would be assigned to the wrong texts
            raise GircseError(
                f"vLLM answered {len(outputs)} requests instead of {len(requests)}: some belong to a call that was "
                "interrupted; embed these texts again"
            )
        return [output.outputs.data.float().numpy() for output in outputs]


def explain_error(error: Exception) -> str:
    """The informative line of a vLLM error: pydantic's first line is only a count."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return ": ".join([*map(str, first["loc"]), first["msg"]])
    return first_line(error)


def split_supported(batch: Numbered, window: int) -> tuple[Numbered, Outcomes]:
    """Split requests into those that vLLM can compute, and the errors of the others.

    The others do not fit the window, or ask for more than the last embedding.
    """
    good: Numbered = []
    refused: Outcomes = []
    for index, request in batch:
        length = len(request.token_ids)
        if request.tolerance is not None or request.top_k or request.trajectory:
            message = (
                "the backend 'vllm' returns the last embedding only, without steps='auto', trajectory or soft_tokens; "
                "use backend='paged' for those"
            )
        elif not 0 < length <= window - request.steps:
            message = (
                f"a prompt of {length} tokens and {request.steps} refinement steps do not fit vLLM's max_model_len of "
                f"{window}; use fewer steps or a smaller max_length"
            )
        else:
            good.append((index, request))
            continue
        refused.append((index, InputError(message)))
    return good, refused


def last_step_refinement(vector: NDArray[np.float32], steps: int) -> Refinement | GircseError:
    """A result in which only the last step's row is known; the rows before it are NaN."""
    if not np.isfinite(vector).all():
        return GircseError(NOT_FINITE)
    trajectory = np.full((steps, len(vector)), np.nan, dtype=np.float32)
    trajectory[-1] = vector
    return Refinement(trajectory)
