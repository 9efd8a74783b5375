"""Shortened vectors: z_K cut to k components, after the checkpoint's rotation if it has one.

A rotation is an orthogonal matrix R (d, d) in the checkpoint's folder, as rotation/model.safetensors:

    short = normalize((R z)[:k])

Its rows are the principal axes of the model's own vectors, the most important first, so k components keep as much of
all inner products as k components can (Eckart-Young). Whole vectors are not rotated: that would change none of their
similarities.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gircse_rag.checkpoint.locate import ROTATION
from gircse_rag.errors import CheckpointError, InputError, first_line

_KEY = "rotation"
_TOLERANCE = 0.01
"""Largest error of an orthogonal matrix's products. Rounding to float16 causes 0.0005."""


@dataclass(frozen=True, eq=False)
class Rotation:
    """An orthogonal matrix.

    Attributes:
        rows: (d, d) float32, orthonormal rows.
    """

    rows: NDArray[np.float32]

    @classmethod
    def fit(cls, vectors: NDArray[np.float32]) -> Rotation:
        """Find the principal axes of vectors (n, d) through the origin, n >= d, rounded to float16.

        Raises:
            InputError: there are too few vectors.
        """
        count, dimension = vectors.shape
        if count < dimension:
            raise InputError(f"a rotation needs at least {dimension} vectors, as many as dimensions, not {count}")
        sums = vectors.T.astype(np.float64) @ vectors.astype(np.float64)
        rows = np.linalg.eigh(sums)[1].T[::-1]  # ascending eigenvalues
        return cls(np.ascontiguousarray(rows.astype(np.float16), np.float32))

    @classmethod
    def read(cls, folder: Path) -> Rotation | None:
        """Read a checkpoint folder's rotation; None if it has none.

        Raises:
            CheckpointError: the file is damaged, or holds something else than one orthogonal matrix.
        """
        from safetensors.numpy import load_file

        path = folder / ROTATION
        if not path.exists():
            return None
        try:
            rows = load_file(path)[_KEY].astype(np.float32)
        except Exception as error:  # safetensors raises many kinds of error for a damaged file
            raise CheckpointError(f"could not read {path}: {type(error).__name__}: {first_line(error)}") from error
        square = rows.ndim == 2 and rows.shape[0] == rows.shape[1]
        if not square or not np.abs(rows @ rows.T - np.eye(len(rows))).max() < _TOLERANCE:  # NaN is not below
            raise CheckpointError(f"{path} holds no orthogonal matrix ({rows.shape}); remove it, or get it again")
        return cls(np.ascontiguousarray(rows))

    def write(self, folder: Path) -> None:
        """Write the rotation, as float16, into a checkpoint folder. A full disk raises OSError or SafetensorError."""
        from safetensors.numpy import save_file

        (folder / ROTATION).parent.mkdir(parents=True, exist_ok=True)
        # safetensors writes the memory of an array as it lies there
        save_file({_KEY: np.ascontiguousarray(self.rows, np.float16)}, folder / ROTATION)

    @cached_property
    def hash(self) -> str:
        """sha256 of the matrix."""
        return hashlib.sha256(self.rows.astype("<f4").tobytes()).hexdigest()


def shorten(vector: NDArray[np.float32], dimension: int, rotation: Rotation | None) -> NDArray[np.float32]:
    """Cut a unit vector (d,) to its first components, rotated before, at unit length again: (dimension,) float32.

    A vector that a server has shortened already is not rotated again.
    """
    if len(vector) == dimension:
        return vector
    if rotation is not None and len(vector) == len(rotation.rows):
        # Not a matrix product: its bits may depend on the number of threads.
        part = (rotation.rows[:dimension] * vector).sum(axis=1)
    else:
        part = vector[:dimension]
    shortened: NDArray[np.float32] = part / np.linalg.norm(part)
    return shortened
