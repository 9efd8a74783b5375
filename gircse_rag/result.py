"""The result of `Embedder.embed`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gircse_rag.backend import Refinement
from gircse_rag.checkpoint.rotation import Rotation, shorten
from gircse_rag.errors import GircseError, plural
from gircse_rag.tokens import Prompt


@dataclass(frozen=True, repr=False)
class EmbeddingResult:
    """Result of `Embedder.embed`, in the order of the input.

    Attributes:
        vectors: (n, d) float32, unit rows; rows of failed texts are NaN.
        trajectory: (n, Kmax, d) float32, z_1..z_Kmax, or None; a row that stopped early repeats its last z.
        steps: (n,) int64, refinement steps used; 0 for failed texts.
        prompt_tokens: (n,) int64, tokens of the rendered text after truncation.
        truncated: (n,) bool, whether the end of the text was cut.
        soft_tokens: per text, per soft token (K of them, or K - 1 for LaSER), the most probable (token, weight) pairs,
            or None.
        errors: position -> error of a failed text; empty unless `on_error="return"`.
    """

    vectors: NDArray[np.float32]
    trajectory: NDArray[np.float32] | None
    steps: NDArray[np.int64]
    prompt_tokens: NDArray[np.int64]
    truncated: NDArray[np.bool_]
    soft_tokens: list[list[list[tuple[str, float]]]] | None
    errors: dict[int, GircseError] = field(default_factory=dict)

    def __repr__(self) -> str:
        count, dimension = self.vectors.shape
        steps = sorted(set(self.steps.tolist()) - {0})
        used = f"{steps[0]} to {steps[-1]} steps" if len(steps) > 1 else plural(steps[0] if steps else 0, "step")
        return (
            f"EmbeddingResult({plural(count, 'vector')} of dimension {dimension}, {used}, "
            f"{int(self.truncated.sum())} truncated, {plural(len(self.errors), 'error')})"
        )

    @classmethod
    def of(
        cls,
        prompts: Sequence[Prompt | None],
        refinements: Sequence[Refinement | None],
        errors: dict[int, GircseError],
        *,
        dimension: int,
        rotation: Rotation | None,
        trajectory: bool,
        decode: Callable[[int], str] | None,
    ) -> EmbeddingResult:
        """Put together what the backend found.

        Args:
            prompts: per text, its tokens, or None where it could not be encoded.
            refinements: per text, what the backend computed, or None where it failed.
            errors: position -> error.
            dimension: d; longer vectors are cut to it.
            rotation: what precedes the cut, or None.
            trajectory: whether the result has a trajectory.
            decode: token id -> text, for the soft tokens; None leaves them out.
        """
        used = np.array([0 if found is None else found.steps for found in refinements], dtype=np.int64)
        vectors = np.full((len(refinements), dimension), np.nan, dtype=np.float32)
        path = (len(refinements), int(used.max(initial=0)), dimension)
        trajectories = np.full(path, np.nan, dtype=np.float32) if trajectory else None
        for index, found in enumerate(refinements):
            if found is None:
                continue
            vectors[index] = shorten(found.vector, dimension, rotation)
            if trajectories is not None:
                trajectories[index, : found.steps] = [shorten(z, dimension, rotation) for z in found.trajectory]
                trajectories[index, found.steps :] = vectors[index]
        soft_tokens = decode and [
            [[(decode(token), weight) for token, weight in step] for step in (found and found.soft_tokens) or []]
            for found in refinements
        ]
        return cls(
            vectors=vectors,
            trajectory=trajectories,
            steps=used,
            prompt_tokens=np.array([0 if p is None else len(p.token_ids) for p in prompts], dtype=np.int64),
            truncated=np.array([p is not None and p.truncated for p in prompts], dtype=np.bool_),
            soft_tokens=soft_tokens,
            errors=dict(sorted(errors.items())),
        )
