"""A backend that is loaded when it is first needed: an ingest that finds everything unchanged never needs it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from gircse_rag.backends.base import Backend, Refinement, Request
from gircse_rag.errors import CheckpointError, GircseError
from gircse_rag.spec import EmbeddingSpec

if TYPE_CHECKING:
    from gircse_rag.embedder import Embedder


class LateBackend:
    """The backend of an embedder that is yet to be loaded.

    Args:
        load: makes the embedder.
        spec: what its spec was taken to be before.
    """

    def __init__(self, load: Callable[[], Embedder], spec: EmbeddingSpec) -> None:
        self._load = load
        self._spec = spec
        self._backend: Backend | None = None
        self._closed = False
        self._lock = threading.Lock()

    @property
    def dimension(self) -> int:
        return self._spec.dimension

    def refine(self, requests: Iterable[Request]) -> Iterator[tuple[int, Refinement | GircseError]]:
        """As the backend's own.

        Raises:
            CheckpointError: the model cannot be loaded, or is another one than its files said.
        """
        with self._lock:
            if self._closed:
                raise GircseError("the embedder is closed; make another")
            if self._backend is None:
                embedder = self._load()
                if embedder.spec != self._spec:
                    raise CheckpointError(
                        f"the model that was loaded ({embedder.spec.describe()}) is not what its files promised "
                        f"({self._spec.describe()}): did they change meanwhile? run again"
                    )
                self._backend = embedder.backend
            backend = self._backend
        return backend.refine(requests)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            if self._backend is not None:
                self._backend.close()
                self._backend = None
