"""`gircse mcp`."""

from __future__ import annotations

import warnings
from contextlib import ExitStack, closing
from typing import Annotated, Literal

from typer import Option

from gircse_rag.cli import options
from gircse_rag.cli.output import note, only_results_on_stdout
from gircse_rag.errors import GircseWarning, require


@options.with_model_options
def mcp(
    collection: options.Collection,
    path: options.StorePath = None,
    url: options.StoreUrl = None,
    transport: Annotated[
        Literal["stdio", "http"], Option(help="stdio for an agent that starts this command, http for a server at /mcp.")
    ] = "stdio",
    host: Annotated[str, Option(help="Address to listen on, with http.")] = "127.0.0.1",
    port: Annotated[int, Option(min=0, max=65535, help="Port to listen on, with http.")] = 8001,
    api_key: Annotated[
        str | None, Option(envvar="GIRCSE_API_KEY", help="Key that clients must send, with http.")
    ] = None,
    model: options.ModelOptions = options.DEFAULT,
) -> None:
    """Give agents a collection as MCP tools: search, and fetch a document.

    docs/operate/mcp.md shows how to add it to an agent.
    """
    with ExitStack() as stack:
        with only_results_on_stdout():
            require("mcp", "mcp")
            from gircse_rag.cli.serving import log_to_stderr
            from gircse_rag.qdrant import open_client
            from gircse_rag.serving.mcp import make_http_app, make_mcp_server
            from gircse_rag.serving.server import run
            from gircse_rag.serving.service import Service
            from gircse_rag.serving.settings import Settings

            client = stack.enter_context(closing(open_client(path, url, create=False)))
            embedder = stack.enter_context(options.load(model))
            server = make_mcp_server(embedder, client, collection)
        log_to_stderr()
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore", GircseWarning)
        if transport == "stdio":
            server.run("stdio")  # stdout is the protocol's
            return
        service = Service(embedder, Settings(model=model.name, api_key=api_key))
        app = make_http_app(server, service, host)
        run(app, service, host, port, on_listening=lambda address: note("serving", f"{collection} at {address}/mcp"))
