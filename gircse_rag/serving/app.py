"""The ASGI application: all routes over one service."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

import gircse_rag
from gircse_rag.errors import GircseError
from gircse_rag.serving.cohere_api import cohere_routes
from gircse_rag.serving.gateway import Gateway
from gircse_rag.serving.health import health_routes
from gircse_rag.serving.openai_api import openai_routes
from gircse_rag.serving.problems import answer_error
from gircse_rag.serving.service import Service
from gircse_rag.serving.tei_api import tei_routes


def create_app(service: Service) -> FastAPI:
    """The application. Its start starts the service, its end cancels the service's work."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await run_in_threadpool(service.close)

    app = FastAPI(
        title="gircse-rag",
        version=gircse_rag.__version__,
        lifespan=lifespan,
        docs_url=None,  # these pages would fetch scripts from elsewhere
        redoc_url=None,
    )
    for routes in (health_routes, openai_routes, cohere_routes, tei_routes):
        app.include_router(routes(service))
    if service.client is not None:
        from gircse_rag.serving.collections import collection_routes
        from gircse_rag.serving.playground_api import playground_routes

        app.include_router(collection_routes(service, service.client))
        app.include_router(playground_routes(service, service.client))
    for kind in (RequestValidationError, HTTPException, GircseError):
        app.add_exception_handler(kind, answer_error)
    app.add_middleware(Gateway, service=service)
    if service.settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(service.settings.cors_origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "X-Request-Id"],
            expose_headers=["X-Request-Id", "Retry-After"],
        )
    return app
