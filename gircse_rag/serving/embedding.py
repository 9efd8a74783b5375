"""Texts or token ids of a request -> vectors, within the server's limits."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gircse_rag.backend import Refinement, Request
from gircse_rag.backends.paged import PagedBackend
from gircse_rag.checkpoint.rotation import shorten
from gircse_rag.embedder import AUTO_STEPS, DEFAULT_TOLERANCE, Embedder
from gircse_rag.errors import GircseError, InputError
from gircse_rag.prompts import Role, check_role
from gircse_rag.serving.problems import RefusedError
from gircse_rag.serving.settings import Settings
from gircse_rag.spec import check_steps
from gircse_rag.tokens import TOKEN_IDS_REFUSED, Prompt, encode, read_instruction


@dataclass(frozen=True, kw_only=True)
class Task:
    """What one request asks to embed.

    Attributes:
        inputs: texts, or lists of token ids.
        role: None is "query" with an instruction and "document" without.
        instruction: None uses the spec's default.
        steps: K for all inputs, one per input, "auto", or None for the spec's.
        max_length: maximum tokens per text if smaller than the spec's.
        truncate: cut longer texts at their end; otherwise they are an error.
        tokenizer: hash of the tokenizer that made the token ids.
        dimensions: number of components that shortened vectors keep; None keeps all.
    """

    inputs: Any
    role: Role | None = None
    instruction: str | None = None
    steps: Any = None
    max_length: int | None = None
    truncate: bool = False
    tokenizer: str | None = None
    dimensions: int | None = None


@dataclass(frozen=True)
class Embedded:
    """Result of a task.

    Attributes:
        vectors: (n, d) float32, unit rows.
        prompt_tokens: tokens of all inputs, templates included, soft tokens not.
        truncated: positions of texts that were cut.
    """

    vectors: NDArray[np.float32]
    prompt_tokens: int
    truncated: list[int]


class RequestBackend:
    """The shared backend as one HTTP request sees it: its calls end once `cancelled` is set."""

    def __init__(self, backend: PagedBackend, cancelled: threading.Event) -> None:
        self._backend = backend
        self._cancelled = cancelled

    @property
    def dimension(self) -> int:
        return self._backend.dimension

    def refine(self, requests: Iterable[Request]) -> Iterator[tuple[int, Refinement | GircseError]]:
        return self._backend.refine(requests, cancelled=self._cancelled)

    def close(self) -> None:
        """Do nothing: other requests share the backend."""


def embedder_for(embedder: Embedder, backend: PagedBackend, cancelled: threading.Event) -> Embedder:
    """The embedder as one HTTP request sees it."""
    return Embedder(RequestBackend(backend, cancelled), embedder.backend_tokenizer, embedder.spec, embedder.rotation)


def embed(embedder: Embedder, settings: Settings, task: Task) -> Embedded:
    """Embed the inputs of a task. Equal inputs are computed once.

    Raises:
        InputError: an input, an argument or a limit of the request; `index` is the input's position.
        RefusedError: the inputs are token ids, perhaps of another tokenizer.
        GircseError: the model failed on an input.
    """
    check_count(len(task.inputs), settings, "inputs")
    steps, tolerance = _resolve_steps(task.steps, len(task.inputs), embedder, settings)
    dimension = embedder.dimension if task.dimensions is None else embedder.spec.shortened(task.dimensions).dimension
    prompts = _encode(embedder, settings, task)
    check_tokens(prompts, settings)
    positions: dict[Request, list[int]] = {}
    for index, (prompt, number) in enumerate(zip(prompts, steps, strict=True)):
        positions.setdefault(Request(prompt.token_ids, number, tolerance), []).append(index)
    vectors = np.empty((len(prompts), dimension), dtype=np.float32)
    errors: dict[int, GircseError] = {}
    requests = list(positions)
    for position, outcome in embedder.backend.refine(requests):
        for index in positions[requests[position]]:
            if isinstance(outcome, Refinement):
                vectors[index] = shorten(outcome.vector, dimension, embedder.rotation)
            else:
                errors[index] = type(outcome)(f"text {index}: {outcome}", index=index)
    if errors:
        raise errors[min(errors)]
    truncated = [index for index, prompt in enumerate(prompts) if prompt.truncated]
    return Embedded(vectors, sum(len(prompt.token_ids) for prompt in prompts), truncated)


def check_count(number: int, settings: Settings, noun: str) -> None:
    """Refuse a request with too many inputs or documents, or none.

    Raises:
        InputError: the number is out of range.
    """
    if not number:
        raise InputError(f"there are no {noun}; send at least one")
    if number > settings.max_inputs:
        raise InputError(f"{number} {noun} are too many for one request; send at most {settings.max_inputs}")


def check_tokens(prompts: list[Prompt], settings: Settings) -> None:
    """Refuse a request with too many tokens.

    Raises:
        InputError: there are more than `max_tokens`.
    """
    tokens = sum(len(prompt.token_ids) for prompt in prompts)
    if tokens > settings.max_tokens:
        raise InputError(f"{tokens} tokens are too many for one request; send at most {settings.max_tokens}")


def check_server_steps(steps: int, settings: Settings) -> None:
    """Refuse a number of steps that is invalid, or too large for this server.

    Raises:
        InputError: it is.
    """
    check_steps(steps)
    if steps > settings.max_steps:
        raise InputError(f"{steps} refinement steps are too many for this server; send at most {settings.max_steps}")


def check_question(embedder: Embedder, question: str, instruction: str | None) -> str:
    """Refuse a question that would be cut. Returns the sentence of its instruction.

    Raises:
        InputError: it is too long, or `encode` refuses it.
    """
    if instruction is not None:
        instruction = read_instruction(instruction)
    if encode(embedder.backend_tokenizer, embedder.spec, question, role="query", instruction=instruction).truncated:
        raise InputError(
            f"the question and its instruction are longer than {embedder.spec.max_length} tokens; shorten it"
        )
    return embedder.spec.default_instruction if instruction is None else instruction


def _encode(embedder: Embedder, settings: Settings, task: Task) -> list[Prompt]:
    if isinstance(task.inputs[0], list):
        return _check_token_ids(embedder, settings, task)
    role: Role = task.role or ("document" if task.instruction is None else "query")
    check_role(role, task.instruction)
    instruction = None if task.instruction is None else read_instruction(task.instruction)
    spec = embedder.spec
    if task.max_length is not None:
        spec = replace(spec, max_length=min(spec.max_length, task.max_length))
    prompts = []
    for index, text in enumerate(task.inputs):
        prompt = encode(embedder.backend_tokenizer, spec, text, role=role, instruction=instruction, index=index)
        if prompt.truncated and not task.truncate:
            raise InputError(
                f"text {index} is longer than {spec.max_length} tokens; split it into chunks, or send "
                "truncate_prompt_tokens=-1 to cut its end",
                index=index,
            )
        prompts.append(prompt)
    return prompts


def _check_token_ids(embedder: Embedder, settings: Settings, task: Task) -> list[Prompt]:
    if task.tokenizer != embedder.spec.tokenizer_hash and not settings.accept_token_ids:
        raise RefusedError(400, TOKEN_IDS_REFUSED, code="token_ids_refused")
    if task.role is not None or task.instruction is not None:
        raise InputError("input is token ids, which are embedded unchanged; role and instruction are for texts")
    for index, ids in enumerate(task.inputs):
        if not isinstance(ids, list) or not all(type(token) is int for token in ids):
            raise InputError(f"input {index} is not a list of token ids; do not mix texts and token ids", index=index)
    return [Prompt(tuple(ids), truncated=False) for ids in task.inputs]


def _resolve_steps(steps: Any, n: int, embedder: Embedder, settings: Settings) -> tuple[list[int], float | None]:
    """Steps per input, and the tolerance at which to stop early, or None."""
    if steps == "auto":
        return [min(AUTO_STEPS, settings.max_steps)] * n, DEFAULT_TOLERANCE
    default = embedder.spec.document_steps
    per_input = steps if isinstance(steps, list) else [steps] * n
    if len(per_input) != n:
        raise InputError(f"steps has {len(per_input)} entries for {n} inputs")
    per_input = [default if value is None else value for value in per_input]
    for value in per_input:
        check_server_steps(value, settings)
    return per_input, None
