"""`GET /health`: the process answers. `GET /ready`: it takes requests. `GET /metrics`: for Prometheus."""

from __future__ import annotations

from fastapi import APIRouter, Response

from gircse_rag.serving.problems import RefusedError
from gircse_rag.serving.service import Service


def health_routes(service: Service) -> APIRouter:
    """The routes over `service`."""
    router = APIRouter()

    @router.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @router.get("/ready")
    async def ready() -> dict[str, str]:
        if not service.ready:
            raise RefusedError(503, "the server is starting or stopping", code="not_ready", Retry_After="1")
        return {"status": "ready"}

    @router.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router
