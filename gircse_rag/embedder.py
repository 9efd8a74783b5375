"""Embedder: texts in, vectors out. The main entry point of the library."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from gircse_rag.backend import Backend, Refinement, Request
from gircse_rag.backends.loading import BackendName, load_backend
from gircse_rag.checkpoint.rotation import Rotation
from gircse_rag.errors import GircseError, GircseWarning, InputError, plural
from gircse_rag.prompts import Role, check_role
from gircse_rag.result import EmbeddingResult
from gircse_rag.spec import EmbeddingSpec, check_steps
from gircse_rag.tokens import Prompt, encode, read_instruction

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

AUTO_STEPS = 20
"""Maximum number of steps with `steps="auto"`."""
DEFAULT_TOLERANCE = 1e-3
"""Cosine distance between z_{k-1} and z_k at which `steps="auto"` stops."""

_PLURAL = {"query": "queries", "document": "documents", "symmetric": "symmetric texts"}

Steps = int | Sequence[int] | Literal["auto"]


class Embedder:
    """Embeds texts with a GIRCSE checkpoint. Create one with `from_pretrained`; safe to use from several threads.

    It cannot be pickled or copied: another process calls `from_pretrained` itself.

    Attributes:
        spec: the vector space, see EmbeddingSpec.
        backend_tokenizer: the model's tokenizer as the `tokenizers` library has it.
        backend: runs the refinement.
        rotation: of the checkpoint, for shortened vectors; None if it has none.
    """

    def __init__(
        self,
        backend: Backend,
        tokenizer: Tokenizer | PreTrainedTokenizerBase,
        spec: EmbeddingSpec,
        rotation: Rotation | None = None,
    ) -> None:
        self.backend = backend
        self.spec = spec
        self.rotation = rotation
        if isinstance(tokenizer, Tokenizer):
            self.backend_tokenizer = tokenizer
        else:  # a copy, because the owner's may be set to truncate
            self.backend_tokenizer = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
            self.__dict__["tokenizer"] = tokenizer
        if self.backend_tokenizer.truncation is not None:  # a change fails while another thread encodes
            self.backend_tokenizer.no_truncation()
        if self.backend_tokenizer.padding is not None:
            self.backend_tokenizer.no_padding()

    @functools.cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer as transformers has it, for libraries that count tokens with one."""
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast(tokenizer_object=self.backend_tokenizer)

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
        revision: str | None = None,
        preset: str | None = None,
        deterministic: bool = False,
        dimensions: int | None = None,
    ) -> Embedder:
        """Load a checkpoint.

        Args:
            name: a bundled name (`gircse models`), a local folder (merged model or PEFT adapter), or a Hub id.
            backend: "paged" (the engine, gircse_rag/engine), "reference" (the paper's loop, one text at a time) or
                "vllm" (docs/operate/vllm.md): vLLM in this process, or the server at `url`.
            device: "auto" (CUDA if available, else the CPU) or a torch device name; Apple's "mps" is untested.
            dtype: of the weights: "float32", "bfloat16", "float16" or "auto". "auto" is bfloat16 where the hardware
                multiplies it natively. Elsewhere it is float32, or on an x86 CPU with the backend "paged" float16,
                where everything but the weights stays float32: half the time, and 1 - cos below 1e-6.
            steps: K for documents, and for queries by default; None uses the checkpoint's own (5 in the paper).
                Part of the vector space and so of the fingerprint.
            url: address of a running server (`gircse serve`), for backend "vllm". The server has the weights and
                chooses device and dtype; this process only tokenises.
            lazy: load the weights when the first text is embedded, if the spec is known without them, as for the
                bundled models. Errors in the weights then appear at that point.
            revision: branch, tag or commit of a Hub id; None is its main branch, which may change. The spec records
                the commit.
            preset: how a checkpoint without a gircse.json renders and pools: "laser" or "laser-quickstart" for a folder
                of LaSER weights (docs/understand/models.md). Known Hub ids have theirs; None otherwise means GIRCSE.
            deterministic: on this machine a text gets the same bits alone, in any batch and order, and with any number
                of threads (docs/understand/engine.md). Slower, and only for backend "paged" on a CPU. Part of no
                fingerprint.
            dimensions: shorten each vector to so many components, at unit length again, after the checkpoint's
                rotation if it has one. Less memory for a slightly lower score (docs/understand/model-card.md); part of
                the fingerprint. None keeps all.

        Raises:
            CheckpointError: the model cannot be loaded; says why and what to do.
            InputError: an argument is invalid.
        """
        return cls(
            *load_backend(
                name,
                backend=backend,
                device=device,
                dtype=dtype,
                steps=steps,
                url=url,
                lazy=lazy,
                revision=revision,
                preset=preset,
                deterministic=deterministic,
                dimensions=dimensions,
            )
        )

    @property
    def fingerprint(self) -> str:
        """32 hex digits; vectors of embedders with the same fingerprint are comparable."""
        return self.spec.fingerprint

    @property
    def dimension(self) -> int:
        """d, the length of a vector."""
        return self.spec.dimension

    def embed_queries(
        self,
        texts: Sequence[str],
        *,
        instruction: str | None = None,
        steps: Steps | None = None,
        show_progress: bool = False,
    ) -> NDArray[np.float32]:
        """Embed queries: (n, d) float32, unit rows, in the order of `texts`.

        Args:
            texts: n texts; n may be 0.
            instruction: what to look for, in one sentence, or the name of such a sentence (`INSTRUCTIONS`); None uses
                the spec's default instruction.
            steps: K for all texts, one K per text, or "auto"; None uses the K of documents.
            show_progress: show progress on stderr: a bar on a terminal, else a line every ten seconds.

        Raises:
            InputError: a text or an argument is invalid; nothing was computed.
        """
        return self.embed(
            texts, role="query", instruction=instruction, steps=steps, show_progress=show_progress
        ).vectors

    def embed_documents(self, texts: Sequence[str], *, show_progress: bool = False) -> NDArray[np.float32]:
        """Embed documents, without instruction and with the spec's steps: (n, d) float32, unit rows, in order.

        A text longer than `spec.max_length` tokens is cut, with a GircseWarning; `embed` reports truncation per text.

        Raises:
            InputError: a text is invalid; nothing was computed.
        """
        return self.embed(texts, role="document", show_progress=show_progress).vectors

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
        show_progress: bool = False,
        on_text: Callable[[int], None] | None = None,
    ) -> EmbeddingResult:
        """Embed texts and return per-text details. Duplicates are computed once.

        Args:
            texts: n texts; n may be 0.
            role: "query" (rendered with the instruction), "document" (bare), or "symmetric" (both sides of the task
                are alike and rendered with the instruction).
            instruction: a sentence or a name; None uses the spec's default; not allowed for documents.
            steps: an integer for all texts, one per text, or "auto" (stop when a step hardly moves the embedding, at
                most AUTO_STEPS). None uses the spec's.
            tolerance: for "auto": stop at 1 - cos(z_k, z_{k-1}) <= tolerance.
            trajectory: also return z_k after every step; costs nothing extra.
            soft_tokens: also return this many of the most probable vocabulary tokens of each soft token.
            on_error: "raise" checks every text before computing anything and raises for the first bad one;
                "return" computes the good texts and reports the bad ones in `errors`, with NaN rows.
            show_progress: show progress on stderr: a bar on a terminal, else a line every ten seconds.
            on_text: called on this thread with the position of every text that is embedded or has failed.

        Raises:
            InputError: an argument, or with on_error="raise" a text, is invalid; `.index` is the text's position.
            GircseError: with on_error="raise", the backend failed on a text.
        """
        texts = _check_texts(texts)
        if isinstance(steps, np.ndarray | np.integer):
            steps = steps.tolist()
        check_role(role, instruction)
        if instruction is not None:
            instruction = read_instruction(instruction)
        if on_error not in ("raise", "return"):
            raise InputError(f"on_error must be 'raise' or 'return', not {on_error!r}")
        vocabulary = self.backend_tokenizer.get_vocab_size()
        if not isinstance(soft_tokens, int) or not 0 <= soft_tokens <= vocabulary:
            raise InputError(f"soft_tokens must be a number from 0 to {vocabulary}, not {soft_tokens!r}")
        per_text, limit = self._resolve_steps(steps, len(texts), tolerance)

        errors: dict[int, GircseError] = {}
        prompts: list[Prompt | None] = []
        for index, text in enumerate(texts):
            try:
                prompts.append(
                    encode(self.backend_tokenizer, self.spec, text, role=role, instruction=instruction, index=index)
                )
            except InputError as error:
                if on_error == "raise":
                    raise
                errors[index] = error
                prompts.append(None)
        self._emit_warnings(prompts, role, steps)

        positions: dict[Request, list[int]] = {}
        for index, prompt in enumerate(prompts):
            if prompt is not None:
                request = Request(prompt.token_ids, per_text[index], limit, soft_tokens, trajectory)
                positions.setdefault(request, []).append(index)
        results: list[Refinement | None] = [None] * len(texts)
        requests = list(positions)
        for position, outcome in self._refine(requests, show_progress):
            for index in positions[requests[position]]:
                if on_text is not None:
                    on_text(index)
                if isinstance(outcome, Refinement):
                    results[index] = outcome
                else:
                    errors[index] = type(outcome)(f"text {index}: {outcome}", index=index)
                    errors[index].__cause__ = outcome
        if errors and on_error == "raise":
            raise errors[min(errors)]
        return EmbeddingResult.of(
            prompts,
            results,
            errors,
            dimension=self.dimension,
            rotation=self.rotation,
            trajectory=trajectory,
            decode=self._decode if soft_tokens else None,
        )

    def _decode(self, token: int) -> str:
        return self.backend_tokenizer.decode([token], skip_special_tokens=False)

    def _refine(self, requests: list[Request], show_progress: bool) -> Iterator[tuple[int, Refinement | GircseError]]:
        if not requests:
            return
        if not show_progress:
            yield from self.backend.refine(requests)
            return
        from gircse_rag.progress import progress

        with progress("embedding") as update:
            for done, outcome in enumerate(self.backend.refine(requests), start=1):
                update(done, len(requests))
                yield outcome

    def __repr__(self) -> str:
        backend = type(self.backend).__name__
        return f"Embedder({self.spec.describe()}, dimension {self.dimension}, {self.spec.dtype}, {backend})"

    def close(self) -> None:
        """Release the model. Using the embedder afterwards raises GircseError."""
        self.backend.close()

    def __enter__(self) -> Embedder:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:  # for pickle, and for copy and deepcopy
        raise GircseError(
            "an Embedder cannot be pickled or copied, because its model lives in this process: call "
            "Embedder.from_pretrained in the other process; threads can share one Embedder"
        )

    def _resolve_steps(self, steps: Steps | None, n: int, tolerance: float) -> tuple[list[int], float | None]:
        """Steps per text, and the tolerance at which to stop early, or None."""
        if not isinstance(steps, int | Sequence | None) or (isinstance(steps, str) and steps != "auto"):
            raise InputError(f"steps must be an integer, one integer per text, or 'auto', not {steps!r}")
        if isinstance(steps, str):
            if not isinstance(tolerance, (int, float)) or not 0 <= tolerance < 2:
                raise InputError(f"tolerance must be a cosine distance of at least 0 and below 2, not {tolerance!r}")
            return [AUTO_STEPS] * n, float(tolerance)
        if steps is None:
            steps = self.spec.document_steps
        per_text = [steps] * n if isinstance(steps, int) else list(steps)
        if len(per_text) != n:
            raise InputError(f"steps has {plural(len(per_text), 'entry', 'entries')} for {plural(n, 'text')}")
        for value in per_text:
            check_steps(value)
        return per_text, None

    def _emit_warnings(self, prompts: list[Prompt | None], role: Role, steps: Steps | None) -> None:
        expected = self.spec.document_steps
        requested = set(steps) if isinstance(steps, Sequence) and not isinstance(steps, str) else {steps}
        if requested - {None, expected}:
            listed = ", ".join(map(str, sorted(requested - {None}, key=str)))
            noun = "refinement step" if listed == "1" else "refinement steps"
            warnings.warn(
                f"{_PLURAL[role]} take {listed} {noun}, the spec's documents {expected}: vectors are "
                "comparable, but the checkpoint's scores were measured with equal steps",
                GircseWarning,
                stacklevel=4,
            )
        cut = [index for index, prompt in enumerate(prompts) if prompt is not None and prompt.truncated]
        if cut:
            positions = ", ".join(map(str, cut[:10])) + (", ..." if len(cut) > 10 else "")
            warnings.warn(
                f"{len(cut)} of {plural(len(prompts), 'text')} {'is' if len(cut) == 1 else 'are'} longer than "
                f"{self.spec.max_length} tokens and cut at the end (positions {positions}); split them into chunks",
                GircseWarning,
                stacklevel=4,
            )


def _check_texts(texts: Sequence[str]) -> list[str]:
    if isinstance(texts, (str, bytes)):
        raise InputError("texts is a single string; pass a list of them: [text]")
    try:
        listed = list(texts)
    except TypeError as error:
        raise InputError(f"texts must be a sequence of strings, not {type(texts).__name__}") from error
    return listed
