"""A backend that loads its model on first use. An ingest in which nothing changed never loads it."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from gircse_rag.backend import CLOSED, Backend, Refinement, Request, check_process
from gircse_rag.errors import CheckpointError, GircseError
from gircse_rag.spec import EmbeddingSpec


class LazyBackend:
    """Delays loading until the first `refine`.

    A process that forks before loading begins loads its own copy. One that forks while another thread loads gets the
    error of `check_process`, as after loading.

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
        self._process = os.getpid()
        _backends.add(self)

    @property
    def dimension(self) -> int:
        return self._spec.dimension

    def refine(self, requests: Iterable[Request]) -> Iterator[tuple[int, Refinement | GircseError]]:
        """Load the model if necessary, then refine.

        Raises:
            CheckpointError: the model cannot be loaded, or its files changed after the spec was read.
            GircseError: the backend is closed, or the process forked while another thread loaded the model.
        """
        check_process(self._process)
        with self._lock:
            if self._closed:
                raise GircseError(CLOSED)
            if self._backend is None:
                backend, spec = self._load()
                if replace(spec, dtype=self._spec.dtype) != self._spec:  # float32 if float16 cannot hold a weight
                    raise CheckpointError(
                        f"the loaded model ({spec.describe()}) differs from the spec read before loading "
                        f"({self._spec.describe()}): did the files change meanwhile? Run again"
                    )
                self._backend = backend
            backend = self._backend
        return backend.refine(requests)

    def close(self) -> None:
        if os.getpid() != self._process:
            return
        with self._lock:
            self._closed = True
            if self._backend is not None:
                self._backend.close()
                self._backend = None

    def after_fork(self) -> None:
        """Adopt the backend in a new process, unless a thread of the old process holds its lock."""
        if not self._lock.locked():
            self._process = os.getpid()


_backends: weakref.WeakSet[LazyBackend] = weakref.WeakSet()


def _after_fork() -> None:
    for backend in list(_backends):
        backend.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
