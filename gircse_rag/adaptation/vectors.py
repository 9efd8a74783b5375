"""Embed texts in parts that are kept on disk, so that a killed run does not embed them again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from gircse_rag.errors import CheckpointError
from gircse_rag.evaluation.vectors import EmbedFn
from gircse_rag.files import atomic_write
from gircse_rag.prompts import Role

PART = 32
"""Texts per part. A part takes 1 to 10 seconds on one core, which is what a kill costs."""


class StoredVectors:
    """Vectors of one model in a folder.

    Args:
        folder: created on first use.
        embed: computes the vectors; its model must not change, as `name` says.
        name: of the model, such as its fingerprint.
        on_text: called with the number of texts after each part, computed or read.
    """

    def __init__(
        self,
        folder: Path,
        embed: EmbedFn,
        name: str,
        on_text: Callable[[int], None] = lambda count: None,
    ) -> None:
        self._folder, self._embed, self._name, self._on_text = folder, embed, name, on_text

    def of(
        self, texts: Sequence[str], role: Role, instruction: str | None = None, *, steps: tuple[int, ...]
    ) -> np.ndarray:
        """Embed texts after each K of `steps`: (n, len(steps), d) float32, unit rows, in order.

        Raises:
            CheckpointError: the folder cannot be written.
            GircseError: the model failed on a text.
        """
        parts = [list(texts[start : start + PART]) for start in range(0, len(texts), PART)]
        return np.concatenate([self._part(part, role, instruction, steps) for part in parts])

    def _part(self, texts: list[str], role: Role, instruction: str | None, steps: tuple[int, ...]) -> np.ndarray:
        key = hashlib.sha256(repr((self._name, steps, role, instruction, texts)).encode()).hexdigest()[:32]
        path = self._folder / f"{key}.npy"
        vectors: np.ndarray
        try:
            vectors = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            vectors = self._embed(texts, role, instruction, steps)
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                with atomic_write(path) as scratch, scratch.open("wb") as file:
                    np.save(file, vectors)
            except OSError as error:
                raise CheckpointError(
                    f"could not write {path}: {error.strerror or error}; free some disk space and run again"
                ) from error
        self._on_text(len(texts))
        return vectors
