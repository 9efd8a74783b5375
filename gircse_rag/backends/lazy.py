"""A backend that loads its model on first use. An ingest in which nothing changed never loads it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator

from gircse_rag.backend import CLOSED, Backend, Refinement, Request
from gircse_rag.errors import CheckpointError, GircseError
from gircse_rag.spec import EmbeddingSpec


class LazyBackend:
    """Delays loading until the first `refine`.

    Args:
        load: loads the model; returns its backend and its actual spec.
        spec: the spec that was read from the files before loading.
    """

    def __init__(self, load: Callable[[], tuple[Backend, EmbeddingSpec]], spec: EmbeddingSpec) -> None:
        self._load = load
        self._spec = spec
        self._backend: Backend | None = None
        self._closed = False
        self._lock = threading.Lock()

    @property
    def dimension(self) -> int:
        return self._spec.dimension

    def refine(self, requests: Iterable[Request]) -> Iterator[tuple[int, Refinement | GircseError]]:
        """Load the model if necessary, then refine.

        Raises:
            CheckpointError: the model cannot be loaded, or its files changed after the spec was read.
        """
        with self._lock:
            if self._closed:
                raise GircseError(CLOSED)
            if self._backend is None:
                backend, spec = self._load()
                if spec != self._spec:
                    raise CheckpointError(
                        f"the loaded model ({spec.describe()}) differs from the spec read before loading "
                        f"({self._spec.describe()}): did the files change meanwhile? Run again"
                    )
                self._backend = backend
            backend = self._backend
        return backend.refine(requests)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            if self._backend is not None:
                self._backend.close()
                self._backend = None
