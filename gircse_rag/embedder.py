"""Texts in, vectors out: the face of the library."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from gircse_rag.backend import Backend, Refinement, Request
from gircse_rag.backends.lazy import LazyBackend
from gircse_rag.errors import GircseError, GircseWarning, InputError
from gircse_rag.hardware import device_of, dtype_of
from gircse_rag.prompts import Role, check_role
from gircse_rag.spec import EmbeddingSpec, check_steps
from gircse_rag.tokens import Prompt, check_instruction, encode

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

AUTO_STEPS = 20
"""The most steps that `steps="auto"` takes."""
DEFAULT_TOLERANCE = 1e-3
"""The cosine distance between z_{k-1} and z_k at which `steps="auto"` stops."""

_PLURAL = {"query": "queries", "document": "documents", "symmetric": "symmetric texts"}

Steps = int | Sequence[int] | Literal["auto"]
BackendName = Literal["paged", "reference", "vllm"]
BACKENDS: tuple[BackendName, ...] = ("paged", "reference", "vllm")


@dataclass(frozen=True)
class EmbeddingResult:
    """What `Embedder.embed` returns, in the order of the input.

    Attributes:
        vectors: (n, d) float32, unit rows; NaN in the rows of failed texts.
        trajectory: (n, Kmax, d) float32, z_1..z_Kmax, or None; a row that stopped early repeats its last z.
        steps: (n,) int64, refinement steps used; 0 where the text failed.
        prompt_tokens: (n,) int64, tokens of the rendered text after truncation.
        truncated: (n,) bool, whether the end of the text was cut.
        soft_tokens: per text, per step, the heaviest (token, weight), or None.
        errors: by position, why a text failed; empty unless `on_error="return"`.
    """

    vectors: NDArray[np.float32]
    trajectory: NDArray[np.float32] | None
    steps: NDArray[np.int64]
    prompt_tokens: NDArray[np.int64]
    truncated: NDArray[np.bool_]
    soft_tokens: list[list[list[tuple[str, float]]]] | None
    errors: dict[int, GircseError] = field(default_factory=dict)


class Embedder:
    """Embeds texts with a GIRCSE checkpoint. Make one with `from_pretrained`; safe to use from several threads.

    Attributes:
        spec: the vector space, see EmbeddingSpec.
        tokenizer: the model's tokenizer, for chunkers that count tokens.
        backend: where refinement runs.
    """

    def __init__(self, backend: Backend, tokenizer: PreTrainedTokenizerBase, spec: EmbeddingSpec) -> None:
        self.backend = backend
        self.tokenizer = tokenizer
        self.spec = spec

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str] = "smollm2-135m",
        *,
        backend: BackendName = "paged",
        device: str = "auto",
        dtype: str = "auto",
        steps: int | None = None,
        url: str | None = None,
        lazy: bool = False,
    ) -> Embedder:
        """Load a checkpoint.

        Args:
            name: a bundled name (`gircse models`), a local folder (merged model or PEFT adapter), or a Hub id.
            backend: "paged", the engine (gircse_rag/engine), "reference", the paper's loop, one text at a time, or
                "vllm" (docs/operate/vllm.md), in this process or, with `url`, a server's.
            device: "auto" (CUDA, else the CPU) or what torch calls it; Apple's "mps" was never tried.
            dtype: "auto" (bfloat16 where the hardware multiplies it natively, else float32), "float32", "bfloat16"
                or "float16".
            steps: K for documents, and for queries by default; None takes the checkpoint's own (5, the paper's).
                It is part of the vector space and so of the fingerprint.
            url: of a running server (`gircse serve`), for the backend "vllm"; it has the weights, this process the
                tokenizer. device and dtype are then the server's.
            lazy: load the weights when the first text is embedded, if the spec can be known without them: of the
                bundled models. What is wrong with them shows then.

        Raises:
            CheckpointError: the model cannot be loaded; says why and what to do.
            InputError: an argument is none of the above.
        """
        if backend not in BACKENDS:
            raise InputError(f"backend {backend!r} does not exist; it is one of {', '.join(BACKENDS)}")
        if steps is not None:
            check_steps(steps)
        if not isinstance(name, str | os.PathLike) or not os.fspath(name):
            raise InputError(f"name must be a bundled name, a folder or a Hub id, not {name!r}")
        if url is not None and backend != "vllm":
            raise InputError(f"url is for backend='vllm'; {backend!r} computes in this process")
        if backend == "vllm":
            return cls._of_vllm(os.fspath(name), device, dtype, steps, url)
        from gircse_rag.checkpoint import load_checkpoint, load_spec

        where = device_of(device)
        if lazy and (known := load_spec(os.fspath(name), dtype=dtype_of(dtype, where))) is not None:
            tokenizer, spec = known[0], known[1] if steps is None else replace(known[1], document_steps=steps)

            def load() -> tuple[Backend, EmbeddingSpec]:
                embedder = cls.from_pretrained(name, backend=backend, device=device, dtype=dtype, steps=steps)
                return embedder.backend, embedder.spec

            return cls(LazyBackend(load, spec), tokenizer, spec)
        checkpoint = load_checkpoint(os.fspath(name), dtype=dtype_of(dtype, where), device=where)
        spec = checkpoint.spec if steps is None else replace(checkpoint.spec, document_steps=steps)
        return cls(_backend(backend, checkpoint.model, spec), checkpoint.tokenizer, spec)

    @classmethod
    def _of_vllm(cls, name: str, device: str, dtype: str, steps: int | None, url: str | None) -> Embedder:
        from gircse_rag.backends.vllm import connect

        if device != "auto" or (url is not None and dtype != "auto"):
            raise InputError("the backend 'vllm' chooses its device, and a server its dtype too: leave them at 'auto'")
        backend, tokenizer, spec = (
            connect.in_process(name, dtype=dtype_of(dtype, device_of("auto")))
            if url is None
            else connect.served(name, url)
        )
        return cls(backend, tokenizer, spec if steps is None else replace(spec, document_steps=steps))

    @property
    def fingerprint(self) -> str:
        """32 hex digits; vectors of embedders with the same fingerprint may be compared."""
        return self.spec.fingerprint

    @property
    def dimension(self) -> int:
        """d, the length of a vector."""
        return self.spec.dimension

    def embed_queries(
        self, texts: Sequence[str], *, instruction: str | None = None, steps: Steps | None = None
    ) -> NDArray[np.float32]:
        """Embed questions: (n, d) float32, unit rows, in the order of `texts`.

        Args:
            texts: n texts.
            instruction: what to look for, one sentence; None takes the spec's default instruction.
            steps: K for all, one K a text, or "auto"; None takes what documents are embedded with.

        Raises:
            InputError: a text or an argument is refused; nothing was computed.
        """
        return self.embed(texts, role="query", instruction=instruction, steps=steps).vectors

    def embed_documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed documents, bare and with the spec's number of steps: (n, d) float32, unit rows, in order.

        A text longer than `spec.max_length` tokens is cut and a GircseWarning names it; `embed` reports it a text.

        Raises:
            InputError: a text is refused; nothing was computed.
        """
        return self.embed(texts, role="document").vectors

    def embed(
        self,
        texts: Sequence[str],
        role: Role = "query",
        instruction: str | None = None,
        *,
        steps: Steps | None = None,
        tolerance: float = DEFAULT_TOLERANCE,
        trajectory: bool = False,
        soft_tokens: int = 0,
        on_error: Literal["raise", "return"] = "raise",
    ) -> EmbeddingResult:
        """Embed texts and tell all about it. Equal texts are computed once and returned each.

        Args:
            texts: n >= 1 texts.
            role: "query" (rendered with the instruction), "document" (bare), or "symmetric" (a task whose two sides
                are alike: rendered with the instruction on both).
            instruction: None takes the spec's default; a document with one is an error.
            steps: an integer for all, one a text, or "auto": at most AUTO_STEPS, stopping when a step no longer
                moves the embedding. None takes the spec's.
            tolerance: for "auto": stop at 1 - cos(z_k, z_{k-1}) <= tolerance.
            trajectory: also return z_k after every step; costs nothing extra.
            soft_tokens: also return that many of the heaviest vocabulary tokens of each soft token.
            on_error: "raise" checks every text before anything is computed and raises for the first bad one;
                "return" computes the good ones and reports the bad in `errors`, their rows NaN.

        Raises:
            InputError: an argument is refused, or (on_error="raise") a text; `.index` says which.
            GircseError: (on_error="raise") the backend failed on a text.
        """
        texts = _check_texts(texts)
        if isinstance(steps, np.ndarray | np.integer):
            steps = steps.tolist()
        check_role(role, instruction)
        if instruction is not None:
            check_instruction(instruction)
        if on_error not in ("raise", "return"):
            raise InputError(f"on_error must be 'raise' or 'return', not {on_error!r}")
        if not isinstance(soft_tokens, int) or not 0 <= soft_tokens <= len(self.tokenizer):
            raise InputError(f"soft_tokens must be a number of vocabulary tokens from 0 on, not {soft_tokens!r}")
        per_text, limit = self._steps(steps, len(texts), tolerance)

        errors: dict[int, GircseError] = {}
        prompts: list[Prompt | None] = []
        for index, text in enumerate(texts):
            try:
                prompts.append(encode(self.tokenizer, self.spec, text, role=role, instruction=instruction, index=index))
            except InputError as error:
                if on_error == "raise":
                    raise
                errors[index] = error
                prompts.append(None)
        self._warn(prompts, role, steps)

        positions: dict[Request, list[int]] = {}
        for index, prompt in enumerate(prompts):
            if prompt is not None:
                request = Request(prompt.token_ids, per_text[index], limit, soft_tokens, trajectory)
                positions.setdefault(request, []).append(index)
        results: list[Refinement | None] = [None] * len(texts)
        for position, outcome in self._refine(list(positions)):
            for index in positions[position]:
                if isinstance(outcome, Refinement):
                    results[index] = outcome
                else:
                    errors[index] = type(outcome)(f"text {index}: {outcome}", index=index)
                    errors[index].__cause__ = outcome
        if errors and on_error == "raise":
            raise errors[min(errors)]
        return self._assemble(prompts, results, errors, trajectory=trajectory, soft_tokens=soft_tokens)

    def close(self) -> None:
        """Release the model. Using the embedder afterwards raises GircseError."""
        self.backend.close()

    def __enter__(self) -> Embedder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _refine(self, requests: list[Request]) -> Iterator[tuple[Request, Refinement | GircseError]]:
        for position, outcome in self.backend.refine(requests):
            yield requests[position], outcome

    def _steps(self, steps: Steps | None, n: int, tolerance: float) -> tuple[list[int], float | None]:
        """Steps a text, and the tolerance at which to leave early or None."""
        if steps is not None and not isinstance(steps, (int, Sequence)):
            raise InputError(f"steps must be an integer, one a text, or 'auto', not {steps!r}")
        if isinstance(steps, str):
            if steps != "auto":
                raise InputError(f"steps must be an integer, one a text, or 'auto', not {steps!r}")
            if not isinstance(tolerance, (int, float)) or not 0 <= tolerance < 2:
                raise InputError(f"tolerance must be a cosine distance from 0 up to 2, not {tolerance!r}")
            return [AUTO_STEPS] * n, float(tolerance)
        if steps is None:
            steps = self.spec.document_steps
        per_text = [steps] * n if isinstance(steps, int) else list(steps)
        if len(per_text) != n:
            raise InputError(f"steps has {len(per_text)} entries for {n} texts")
        for value in per_text:
            check_steps(value)
        return per_text, None

    def _warn(self, prompts: list[Prompt | None], role: Role, steps: Steps | None) -> None:
        expected = self.spec.document_steps
        asked = set(steps) if isinstance(steps, Sequence) and not isinstance(steps, str) else {steps}
        if asked - {None, expected}:
            several = ", ".join(map(str, sorted(asked - {None}, key=str)))
            warnings.warn(
                f"{_PLURAL[role]} take {several} refinement steps, the spec's documents {expected}: the vectors may be "
                "compared, but the checkpoint's scores are for equal steps",
                GircseWarning,
                stacklevel=4,
            )
        cut = [index for index, prompt in enumerate(prompts) if prompt is not None and prompt.truncated]
        if cut:
            named = ", ".join(map(str, cut[:10])) + (", ..." if len(cut) > 10 else "")
            warnings.warn(
                f"{len(cut)} of {len(prompts)} texts are longer than {self.spec.max_length} tokens and were cut at the "
                f"end (positions {named}); split them into chunks",
                GircseWarning,
                stacklevel=4,
            )

    def _assemble(
        self,
        prompts: list[Prompt | None],
        results: list[Refinement | None],
        errors: dict[int, GircseError],
        *,
        trajectory: bool,
        soft_tokens: int,
    ) -> EmbeddingResult:
        n, d = len(results), self.dimension
        used = np.array([0 if result is None else result.steps for result in results], dtype=np.int64)
        vectors = np.full((n, d), np.nan, dtype=np.float32)
        path = np.full((n, int(used.max()), d), np.nan, dtype=np.float32) if trajectory else None
        for index, result in enumerate(results):
            if result is None:
                continue
            vectors[index] = result.vector
            if path is not None:
                path[index, : result.steps] = result.trajectory
                path[index, result.steps :] = result.vector
        heaviest = None
        if soft_tokens:
            heaviest = [
                [
                    [(self.tokenizer.decode([token]), weight) for token, weight in step]
                    for step in result.soft_tokens or []
                ]
                if result is not None
                else []
                for result in results
            ]
        return EmbeddingResult(
            vectors=vectors,
            trajectory=path,
            steps=used,
            prompt_tokens=np.array([0 if p is None else len(p.token_ids) for p in prompts], dtype=np.int64),
            truncated=np.array([p is not None and p.truncated for p in prompts], dtype=np.bool_),
            soft_tokens=heaviest,
            errors=dict(sorted(errors.items())),
        )


def _check_texts(texts: Sequence[str]) -> list[str]:
    if isinstance(texts, (str, bytes)):
        raise InputError("texts is a single string; pass a list of them: [text]")
    try:
        listed = list(texts)
    except TypeError as error:
        raise InputError(f"texts must be a sequence of strings, not {type(texts).__name__}") from error
    if not listed:
        raise InputError("texts is empty; pass at least one")
    return listed


def _backend(name: BackendName, model: PreTrainedModel, spec: EmbeddingSpec) -> Backend:
    if name == "paged":
        from gircse_rag.backends.paged import PagedBackend

        return PagedBackend(model, spec)
    from gircse_rag.backends.reference import ReferenceBackend

    return ReferenceBackend(model, temperature=spec.temperature)
