"""What all routes share: the model, the settings, the queue, the metrics, and the store if there is one."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from fastapi import Request

from gircse_rag.backends.paged import PagedBackend
from gircse_rag.embedder import Embedder
from gircse_rag.errors import GircseError, InputError
from gircse_rag.serving.calls import Calls
from gircse_rag.serving.embedding import Embedded, Task, embed, embedder_for
from gircse_rag.serving.metrics import Metrics
from gircse_rag.serving.problems import RefusedError
from gircse_rag.serving.settings import Settings

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

T = TypeVar("T")
log = logging.getLogger(__name__)

_MAX_QUEUED_WRITES = 16


class Service:
    """One model behind HTTP.

    Args:
        embedder: an embedder with the paged backend.
        settings: limits and options.
        client: a store, for the routes of collections; None leaves them out.
        collection: the collection that a search without a name searches.

    Attributes:
        ready: whether the warm-up is over and the server is not stopping.

    Raises:
        InputError: the embedder has another backend.
    """

    def __init__(
        self,
        embedder: Embedder,
        settings: Settings,
        *,
        client: QdrantClient | None = None,
        collection: str | None = None,
    ) -> None:
        if not isinstance(embedder.backend, PagedBackend):
            raise InputError(f"a server needs backend='paged', not {type(embedder.backend).__name__}")
        self.embedder = embedder
        self.backend = embedder.backend
        self.settings = settings
        self.client = client
        self.collection = collection
        self.ready = False
        self.calls = Calls(
            threads=settings.max_concurrency, queue=settings.max_queue, timeout=settings.timeout, name="gircse-request"
        )
        # one thread: two ingests of one document at a time could each delete what the other wrote
        self.writes = Calls(threads=1, queue=_MAX_QUEUED_WRITES, timeout=settings.timeout, name="gircse-write")
        self.metrics = Metrics(lambda: self.backend.stats, lambda: self.calls.pending)

    def start(self) -> None:
        """Start the engine thread and the warm-up, which compiles and allocates what the first text needs."""
        self.backend.start_engine_thread()
        threading.Thread(target=self._warm_up, name="gircse-warm-up", daemon=True).start()

    def close(self) -> None:
        """Cancel all work. The embedder and the store stay open: they are the caller's."""
        self.ready = False
        self.writes.close()
        self.calls.close()

    def check_model(self, name: str | None) -> None:
        """Check the name of the model that a client asks for.

        Raises:
            RefusedError: 404, another name than the served one.
        """
        if name is not None and name != self.settings.model:
            message = f"there is no model {name!r} here; this server has {self.settings.model!r}"
            raise RefusedError(404, message, code="model_not_found")

    async def embed(self, request: Request, task: Task, render: Callable[[Embedded], T]) -> T:
        """Embed the inputs of a task and `render` the result, both on a thread.

        Raises:
            RefusedError, InputError, GircseError: as `Calls.run` and `embedding.embed`.
        """

        def work(cancelled: threading.Event) -> T:
            result = embed(embedder_for(self.embedder, self.backend, cancelled), self.settings, task)
            self.metrics.count_texts(len(result.vectors), result.prompt_tokens)
            request.scope["gircse_counts"] = {"inputs": len(result.vectors), "prompt_tokens": result.prompt_tokens}
            return render(result)

        return await self.calls.run(request, work)

    def _warm_up(self) -> None:
        try:
            embed(self.embedder, self.settings, Task(inputs=["warm-up"]))
        except GircseError as error:
            log.error("the warm-up failed, so /ready stays 503: %s", error)
        else:
            self.ready = True
