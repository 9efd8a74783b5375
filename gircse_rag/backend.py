"""The protocol between the Embedder, which handles texts, and a backend, which refines token ids into vectors."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gircse_rag.errors import GircseError, InputError, plural

CLOSED = "this embedder is closed; load a new one with Embedder.from_pretrained"
CANCELLED = "the call was cancelled; its results are no longer needed"
NOT_FINITE = "the model produced NaN or infinity for this text; try dtype='float32'"
"""Messages of errors that every backend may raise."""


@dataclass(frozen=True)
class Request:
    """One rendered text to refine.

    Attributes:
        token_ids: the whole prompt, at least one id.
        steps: K, the number of pooled states; an upper bound when `tolerance` is set. GIRCSE feeds K soft tokens for
            them, LaSER K - 1 (`EmbeddingSpec.pooling`).
        tolerance: stop as soon as 1 - cos(z_k, z_{k-1}) <= tolerance (`steps="auto"`); None runs all steps.
        top_k: how many vocabulary tokens to report per soft token, the most probable first.
        trajectory: whether embeddings before the last one are needed; most backends return them anyway.
    """

    token_ids: tuple[int, ...]
    steps: int
    tolerance: float | None = None
    top_k: int = 0
    trajectory: bool = False


@dataclass(frozen=True)
class Refinement:
    """Result of one request.

    Attributes:
        trajectory: (k, d) float32, unit rows: z_1..z_k, where k is the number of steps used.
        soft_tokens: per soft token that was fed, the `top_k` most probable (token id, weight) pairs, or None if `top_k`
            is 0.
    """

    trajectory: NDArray[np.float32]
    soft_tokens: list[list[tuple[int, float]]] | None = None

    @property
    def vector(self) -> NDArray[np.float32]:
        """(d,) float32: the embedding after the last step."""
        vector: NDArray[np.float32] = self.trajectory[-1]
        return vector

    @property
    def steps(self) -> int:
        """The number of refinement steps used."""
        return len(self.trajectory)


def check_process(process: int) -> None:
    """Refuse to work in another process than `process`, the id of the one that loaded the model.

    After a fork, locks may be held by threads that the new process lacks, and connections belong to both processes.

    Raises:
        GircseError: this is another process.
    """
    if os.getpid() != process:
        raise GircseError(
            "this embedder was loaded before the process forked; load it in the new process, or start the process with "
            "the spawn method: multiprocessing.get_context('spawn')"
        )


def check_request(request: Request, vocabulary: int, window: int) -> None:
    """Refuse a request that the model cannot compute, before it joins a batch with other requests.

    Raises:
        InputError: no tokens, an id outside the vocabulary, an invalid number of steps or soft tokens, or more
            positions than the model's window.
    """
    if not request.token_ids:
        raise InputError("a prompt needs at least one token")
    for token in (min(request.token_ids), max(request.token_ids)):
        if not 0 <= token < vocabulary:
            raise InputError(
                f"token id {token} is outside the model's vocabulary of {vocabulary}; use the model's own tokenizer"
            )
    if not isinstance(request.steps, int) or request.steps < 1:
        raise InputError(f"a request's steps must be an integer from 1 upwards, not {request.steps!r}")
    if not 0 <= request.top_k <= vocabulary:
        raise InputError(f"top_k must be from 0 to the vocabulary size {vocabulary}, not {request.top_k!r}")
    if len(request.token_ids) + request.steps > window:
        prompt = f"a prompt of {plural(len(request.token_ids), 'token')} and {plural(request.steps, 'refinement step')}"
        raise InputError(
            f"{prompt} do not fit the model's window of {window} positions; use fewer steps or a smaller max_length"
        )


class Backend(Protocol):
    """Refines prompts. Safe to call from several threads at once."""

    @property
    def dimension(self) -> int:
        """d, the length of every vector."""
        ...

    def refine(self, requests: Iterable[Request]) -> Iterator[tuple[int, Refinement | GircseError]]:
        """Yield (position of the request, its result) in completion order, in bounded memory.

        `requests` is consumed lazily and may be endless. A failed request yields its error; others are unaffected.
        Closing the iterator cancels unfinished requests and frees their memory.
        """
        ...

    def close(self) -> None:
        """Release the model. Calling it twice is harmless; `refine` afterwards raises GircseError."""
        ...
