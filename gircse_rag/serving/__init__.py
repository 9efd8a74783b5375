"""`gircse serve` and `gircse mcp`: one model, and one store, for programs of any language.

    http request ─► gateway ─► routes ─► calls ─► embedding ─► the paged backend's engine thread
                                              └─► collections ─► gircse_rag.qdrant

    settings      limits and options of a server
    gateway       request ids, API key, bounded bodies, access log; runs before any route
    calls         a bounded queue of blocking work; ends the work of clients that hang up
    embedding     texts or token ids -> vectors, within the limits
    openai_api    POST /v1/embeddings, GET /v1/models, GET /v1/gircse
    cohere_api    POST /v2/embed
    tei_api       POST /embed
    collections   POST /v1/search, /v1/collections: search, ingest, delete
    playground_api   GET /: the page in `playground/`; POST /v1/playground: what only the page asks
    comparing     scores of instructions
    health        GET /health, /ready, /metrics
    problems      exceptions -> error bodies in the shape of each API
    metrics       counters for Prometheus
    app           puts the routes together
    server        listens, and drains on SIGTERM
    mcp           the collection as tools for agents

Only `server` and `app` are for callers: `create_app(service)` returns an ASGI application.
"""
