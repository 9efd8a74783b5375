"""A server in this process, on a free port: `with serve(service) as url`."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.types import ASGIApp

from gircse_rag.serving.app import create_app
from gircse_rag.serving.server import make_server
from gircse_rag.serving.service import Service


@contextmanager
def serve(service: Service, app: ASGIApp | None = None) -> Iterator[str]:
    """Serve `app`, by default all routes, until the block ends; yields the URL. The service is ready."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = make_server(create_app(service) if app is None else app, service)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        deadline = time.monotonic() + 60
        while not service.ready:
            assert thread.is_alive() and time.monotonic() < deadline, "the server did not start"
            time.sleep(0.005)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive(), "the server did not stop"
