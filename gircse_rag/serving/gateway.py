"""What every request passes before its route: request id, API key, a bounded body; and the access log after it."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gircse_rag.serving.problems import CLIENT_CLOSED_REQUEST, RefusedError, describe, to_response
from gircse_rag.serving.service import Service

log = logging.getLogger(__name__)
access_log = logging.getLogger("gircse_rag.access")

_OPEN_PATHS = frozenset({"/health", "/ready", "/"})
_OPEN_FOLDER = "/playground/"  # the page's own files, which hold nothing of the collection; the page asks for the key
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_MAX_DISCARDED_BYTES = 64 * 2**20  # of a refused body: clients read the answer only after they have sent all of it


class Gateway:
    """ASGI middleware around the routes.

    It reads the whole body before the route runs, so a slow client holds no thread, and then watches for its
    hanging up. The log has one JSON line per request, without texts or keys.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service
        key = service.settings.api_key
        self._key_hash = None if key is None else hashlib.sha256(key.encode()).digest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope["gircse_request_id"] = request_id
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        try:
            try:
                self._check_key(scope)
                body = await self._read_body(scope, receive)
            except RefusedError as error:
                await self._discard_body(receive)
                response = to_response(describe(error), scope["path"], request_id)
                await response(scope, receive, send_with_id)
            else:
                await self._app(scope, _replay(body, receive), send_with_id)
        except Exception as error:
            log.exception("request %s failed", request_id)
            if status:  # the answer has begun, so uvicorn has to cut it off
                raise
            response = to_response(describe(error), scope["path"], request_id)
            await response(scope, receive, send_with_id)
        finally:
            self._record(scope, status, time.monotonic() - started)

    def _check_key(self, scope: Scope) -> None:
        path = scope["path"]
        if self._key_hash is None or path in _OPEN_PATHS or path.startswith(_OPEN_FOLDER):
            return
        scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
        given = hashlib.sha256(key.strip().encode()).digest()
        if not hmac.compare_digest(given, self._key_hash) or scheme.lower() != "bearer":
            message = "the API key is missing or wrong; send it as `Authorization: Bearer KEY`"
            raise RefusedError(401, message, code="invalid_api_key", WWW_Authenticate="Bearer")

    async def _read_body(self, scope: Scope, receive: Receive) -> bytes:
        limit, seconds = self._service.settings.max_body_bytes, self._service.settings.body_timeout
        announced = Headers(scope=scope).get("content-length", "0")
        body = bytearray()
        try:
            async with asyncio.timeout(seconds):
                while True:
                    if len(body) > limit or (announced.isdigit() and int(announced) > limit):
                        message = f"the body is larger than {limit} bytes; send fewer inputs per request"
                        raise RefusedError(413, message, code="body_too_large")
                    message_ = await receive()
                    if message_["type"] == "http.disconnect":
                        raise RefusedError(CLIENT_CLOSED_REQUEST, "the client hung up")
                    body += message_.get("body", b"")
                    if not message_.get("more_body") and len(body) <= limit:
                        return bytes(body)
        except TimeoutError:
            message = f"the body did not arrive within {seconds:g} seconds"
            raise RefusedError(408, message, code="slow_body", Connection="close") from None

    async def _discard_body(self, receive: Receive) -> None:
        """Read on until the client has sent its body, or so much that it is to be cut off."""
        discarded = 0
        try:
            async with asyncio.timeout(self._service.settings.body_timeout):
                while discarded < _MAX_DISCARDED_BYTES:
                    message = await receive()
                    discarded += len(message.get("body", b""))
                    if not message.get("more_body"):
                        return
        except TimeoutError:
            return

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "unknown")
        self._service.metrics.count_request(route, status, seconds)
        client = scope.get("client")
        entry = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "request_id": scope["gircse_request_id"],
            "client": client and client[0],
            "method": scope["method"],
            "route": route,
            "status": status,
            "seconds": round(seconds, 4),
            **scope.get("gircse_counts", {}),
        }
        access_log.info(json.dumps(entry))


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body that was read, then what the connection gives."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return pending.pop() if pending else await receive()

    return replayed
