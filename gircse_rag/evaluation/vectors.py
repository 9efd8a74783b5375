"""From texts to vectors: every distinct (text, role, instruction) is embedded once, for all values of K together."""

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

Anything may stand behind it: an `Embedder`, a pooled encoder (which ignores `steps`), a loop on another machine. It
gets all the texts of a role and an instruction at once and forms its own batches.
"""

Key = tuple[Role, str | None]


class FromEmbedder:
    """An `Embedder` as an `EmbedFn`; `truncated` counts the texts it had to cut."""

    def __init__(self, embedder: Embedder, *, chunk: int = 2048) -> None:
        self.embedder = embedder
        self.chunk = chunk
        self.truncated = 0

    def __call__(self, texts: list[str], role: Role, instruction: str | None, steps: tuple[int, ...]) -> np.ndarray:
        if 0 in steps:
            raise InputError("an Embedder refines at least once: name steps from 1; 0 is for models without refinement")
        rows = [k - 1 for k in steps]
        parts = []
        for start in range(0, len(texts), self.chunk):  # a chunk bounds the trajectory, of which only `steps` are kept
            part = texts[start : start + self.chunk]
            with warnings.catch_warnings():
                # Both things the embedder warns of are the report's to say: texts cut, and K other than the default.
                warnings.simplefilter("ignore", GircseWarning)
                result = self.embedder.embed(part, role, instruction, steps=max(steps), trajectory=True)
            assert result.trajectory is not None
            self.truncated += int(result.truncated.sum())
            parts.append(result.trajectory[:, rows])
        return np.concatenate(parts)


class Vectors:
    """Vectors of the texts that a list of sets needs: made when first asked for, dropped after the last use.

    Args:
        sets: all the sets to be scored, in the order in which they will be.
        embed: what makes vectors.
        steps: the values of K, ascending.
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
        """The block's vectors (n, K, d) float32, unit rows.

        Raises:
            InputError: `embed` returned another shape, or a vector that is not finite or has no length.
        """
        key = (block.role, block.instruction)
        if key not in self._arrays:
            self._arrays[key] = self._make(key)
        rows = self._rows[key]
        return self._arrays[key][[rows[text] for text in block.texts]]

    def done_with(self, index: int) -> None:
        """Forget what only the sets up to number `index` needed."""
        for key in [key for key in self._arrays if self._last_use[key] <= index]:
            del self._arrays[key]

    def _make(self, key: Key) -> np.ndarray:
        texts = [without_controls(text) for text in self._rows[key]]
        made = np.asarray(self.embed(texts, *key, self.steps), dtype=np.float32)
        if made.ndim != 3 or made.shape[:2] != (len(texts), len(self.steps)):
            raise InputError(
                f"the embedding function returned {made.shape} for {len(texts)} texts and {len(self.steps)} values "
                f"of K; expected ({len(texts)}, {len(self.steps)}, d)"
            )
        length = np.linalg.norm(made, axis=2, keepdims=True)
        bad = np.flatnonzero(~(np.isfinite(length) & (length > 0)).all(axis=(1, 2)))
        if len(bad):
            text = texts[int(bad[0])]
            raise InputError(
                f"{len(bad)} of {len(texts)} texts (role {key[0]!r}) got a vector that is not finite or has no length; "
                f"the first is {text[:80]!r}"
            )
        self.embedded += len(texts)
        unit: np.ndarray = made / length
        return unit


def check_steps(steps: Iterable[int]) -> tuple[int, ...]:
    """`steps` ascending and without repeats.

    0 is allowed: it stands for models that take no refinement step, such as pooling baselines and encoders.

    Raises:
        InputError: it is empty or holds anything but whole numbers from 0.
    """
    if not isinstance(steps, Iterable):
        raise InputError(f"steps must be whole numbers such as (1, 5), got {steps!r}")
    given = list(steps)
    for step in given:
        if isinstance(step, bool) or not isinstance(step, (int, np.integer)) or step < 0:
            raise InputError(f"steps must be whole numbers such as (1, 5), got {step!r}")
    if not given:
        raise InputError("steps is empty; name at least one number of refinement steps, such as (1, 5)")
    return tuple(sorted({int(step) for step in given}))
