"""A backend that reports progress: `ProgressBackend`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gircse_rag.backend import Backend, Refinement, Request
    from gircse_rag.errors import GircseError


class ProgressBackend:
    """Wraps a Backend and calls `update(done, total)` after each finished text; `done` adds up over all calls."""

    def __init__(self, backend: Backend, update: Callable[[int, int], None], total: int) -> None:
        self._backend, self._update, self._total = backend, update, total
        self._done = 0

    @property
    def dimension(self) -> int:
        return self._backend.dimension

    def refine(self, requests: Iterable[Request]) -> Iterator[tuple[int, Refinement | GircseError]]:
        for outcome in self._backend.refine(requests):
            self._done += 1
            self._update(self._done, self._total)
            yield outcome

    def close(self) -> None:
        self._backend.close()
