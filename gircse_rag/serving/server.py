"""Listens on a socket, and drains on SIGTERM or Ctrl-C."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from gircse_rag.errors import InputError
from gircse_rag.serving.service import Service

_FIRST_BYTES_SECONDS = 10.0
_KEEP_ALIVE_SECONDS = 30
_BACKLOG = 2048


class _Protocol(H11Protocol):
    """Closes connections that send no complete request head soon; uvicorn would wait for ever.

    It also sends an answer's body at once. asyncio sets TCP_NODELAY only on sockets that it makes itself, and without
    it the body waits up to 40 ms for the client to acknowledge the head.
    """

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        asyncio.get_running_loop().call_later(_FIRST_BYTES_SECONDS, self._close_if_silent)

    def _close_if_silent(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.close()


class _Server(uvicorn.Server):
    """Answers 503 on /ready from the signal on, while requests under way are finished."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # not uvicorn's, which raises the signal again in the end, before the caller can close its store
        self._service.ready = False
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True


def run(app: ASGIApp, service: Service, host: str, port: int, *, on_listening: Callable[[str], None]) -> None:
    """Serve until SIGTERM or Ctrl-C, then finish the requests under way. A second Ctrl-C stops at once.

    Args:
        app: `create_app(service)` or another application over `service`.
        host: address to listen on.
        port: 0 takes a free one.
        on_listening: called with the server's URL once connections are accepted.

    Raises:
        InputError: the address cannot be listened on.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"cannot listen on {host} port {port}: {reason}; choose another --host or --port") from error
    with listener:
        actual = listener.getsockname()[1]
        on_listening(f"http://[{host}]:{actual}" if family == socket.AF_INET6 else f"http://{host}:{actual}")
        make_server(app, service).run(sockets=[listener])


def make_server(app: ASGIApp, service: Service) -> uvicorn.Server:
    """A server for a socket that listens: `run(sockets=[...])`."""
    return _Server(
        uvicorn.Config(
            app,
            http=_Protocol,
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=service.settings.drain_timeout,
        ),
        service,
    )
