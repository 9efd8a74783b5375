"""Embed every distinct (text, role, instruction) of the evaluation sets once, for all K together."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from gircse_rag.errors import GircseWarning, InputError
from gircse_rag.evaluation.sets import Block, EvalSet
from gircse_rag.prompts import Role
from gircse_rag.tokens import without_controls

if TYPE_CHECKING:
    from gircse_rag.embedder import Embedder

EmbedFn = Callable[[list[str], Role, str | None, tuple[int, ...]], np.ndarray]
"""`embed(texts, role, instruction, steps) -> (n, len(steps), d) float32`: z_k of each text for each k of `steps`.

It may wrap an `Embedder`, a pooled encoder (which ignores `steps`), or a loop on another machine. It receives all texts
with the same role and instruction at once and forms its own batches.
"""

Key = tuple[Role, str | None]


class FromEmbedder:
    """An `EmbedFn` over an `Embedder`; `truncated` counts the truncated texts."""

    def __init__(self, embedder: Embedder, *, chunk: int = 2048) -> None:
        self.embedder = embedder
        self.chunk = chunk
        self.truncated = 0

    def __call__(self, texts: list[str], role: Role, instruction: str | None, steps: tuple[int, ...]) -> np.ndarray:
        if 0 in steps:
            raise InputError("an Embedder takes at least one step: use steps >= 1; 0 is for models without refinement")
        rows = [k - 1 for k in steps]
        parts = []
        for start in range(0, len(texts), self.chunk):  # chunks limit the memory of trajectories
            part = texts[start : start + self.chunk]
            with warnings.catch_warnings():
                # The report shows what these warnings say: truncated texts, and a K that is not the default.
                warnings.simplefilter("ignore", GircseWarning)
                result = self.embedder.embed(part, role, instruction, steps=max(steps), trajectory=True)
            assert result.trajectory is not None
            self.truncated += int(result.truncated.sum())
            parts.append(result.trajectory[:, rows])
        return np.concatenate(parts)


class Vectors:
    """Vectors for a list of sets: computed on first use, released after the last.

    Args:
        sets: all sets to score, in scoring order.
        embed: the embedding function.
        steps: values of K, ascending.
    """

    def __init__(self, sets: Sequence[EvalSet], embed: EmbedFn, steps: tuple[int, ...]) -> None:
        self.embed = embed
        self.steps = steps
        self.embedded = 0
        self._rows: dict[Key, dict[str, int]] = {}
        self._last_use: dict[Key, int] = {}
        self._arrays: dict[Key, np.ndarray] = {}
        for index, evaluation_set in enumerate(sets):
            for block in evaluation_set.blocks.values():
                rows = self._rows.setdefault((block.role, block.instruction), {})
                for text in block.texts:
                    rows.setdefault(text, len(rows))
                self._last_use[block.role, block.instruction] = index

    def of(self, block: Block) -> np.ndarray:
        """Return the block's vectors: (n, len(steps), d) float32, unit rows.

        Raises:
            InputError: `embed` returned a wrong shape, or a vector that is zero or not finite.
        """
        key = (block.role, block.instruction)
        if key not in self._arrays:
            self._arrays[key] = self._embed_texts(key)
        rows = self._rows[key]
        return self._arrays[key][[rows[text] for text in block.texts]]

    def done_with(self, index: int) -> None:
        """Release vectors that no set after number `index` needs."""
        for key in [key for key in self._arrays if self._last_use[key] <= index]:
            del self._arrays[key]

    def _embed_texts(self, key: Key) -> np.ndarray:
        texts = [without_controls(text) for text in self._rows[key]]
        vectors = np.asarray(self.embed(texts, *key, self.steps), dtype=np.float32)
        if vectors.ndim != 3 or vectors.shape[:2] != (len(texts), len(self.steps)):
            raise InputError(
                f"the embedding function returned {vectors.shape} for {len(texts)} texts and {len(self.steps)} values "
                f"of K; expected ({len(texts)}, {len(self.steps)}, d)"
            )
        length = np.linalg.norm(vectors, axis=2, keepdims=True)
        bad = np.flatnonzero(~(np.isfinite(length) & (length > 0)).all(axis=(1, 2)))
        if len(bad):
            text = texts[int(bad[0])]
            raise InputError(
                f"{len(bad)} of {len(texts)} texts (role {key[0]!r}) got a vector that is zero or not finite; "
                f"the first is {text[:80]!r}"
            )
        self.embedded += len(texts)
        unit: np.ndarray = vectors / length
        return unit


def check_steps(steps: Iterable[int]) -> tuple[int, ...]:
    """Return `steps` sorted, without duplicates.

    0 is allowed: it stands for models without refinement, such as pooling baselines and encoders.

    Raises:
        InputError: `steps` is empty, or holds anything but whole numbers >= 0.
    """
    if not isinstance(steps, Iterable):
        raise InputError(f"steps must be whole numbers such as (1, 5), got {steps!r}")
    given = list(steps)
    for step in given:
        if isinstance(step, bool) or not isinstance(step, (int, np.integer)) or step < 0:
            raise InputError(f"steps must be whole numbers such as (1, 5), got {step!r}")
    if not given:
        raise InputError("steps is empty; give at least one number of refinement steps, such as (1, 5)")
    return tuple(sorted({int(step) for step in given}))
