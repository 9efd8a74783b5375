"""A Qdrant server for tests: it answers our REST calls from Qdrant's local mode and injects faults on demand.

The real client connects to it over HTTP: `QdrantClient(url=shim.url)`.
"""

from __future__ import annotations

import json
import random
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from pydantic import BaseModel
from qdrant_client import QdrantClient, models
from qdrant_client.http.models import models as rest

from gircse_rag.qdrant.local import serialize_access

Fault = Literal["429", "408", "500", "503", "drop before", "drop after", "delay", "acknowledged", "400", "404"]
FAULTS: tuple[Fault, ...] = ("429", "408", "500", "503", "drop before", "drop after", "acknowledged")
"""Faults that a retry fixes and that take no time."""

_INDEX = re.compile(r"/collections/([^/]+)/index")
_COLLECTION = re.compile(r"/collections/([^/]+)(/.*)?$")


class Shim:
    """A server on a free local port, running while the block lasts.

    Attributes:
        url: its address.
        store: the local-mode client behind it; use it only while no request runs, or inside `paused`.
        requests: (method, path) of every request.
        request_times: when each request came, in seconds of time.monotonic.
        retry_after: the Retry-After header of a 429, or None for no header.
        delay_seconds: duration of a "delay".
        version: what the server says its version is. Before 1.16 it ignores the metadata of new collections.
        indexes: the payload indexes of each collection: field -> kind.
        strict: refuse filters and groups by fields without an index, as Qdrant Cloud does by default.
    """

    def __init__(self, path: Path | None = None, *, api_key: str | None = None, strict: bool = False) -> None:
        self.strict = strict
        self.indexes: dict[str, dict[str, str]] = {}
        self.store = QdrantClient(":memory:") if path is None else QdrantClient(path=str(path))
        serialize_access(self.store)  # which also keeps vectors of unit length as they are, as a server does
        self.requests: list[tuple[str, str]] = []
        self.request_times: list[float] = []
        self.retry_after: str | None = "0"
        self.delay_seconds = 3.0
        self.version = "1.18.0"
        self.api_key = api_key
        self._lock = threading.Lock()
        self._choose: Callable[[str, str], Fault | None] = lambda method, path: None
        handler = type("Handler", (_Handler,), {"shim": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Shim:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        with self._lock:
            self.store.close()

    def client(self, timeout: int = 30) -> QdrantClient:
        return QdrantClient(url=self.url, api_key=self.api_key, check_compatibility=False, timeout=timeout)

    def fail_next(self, faults: Iterable[Fault | None], method: str = "PUT", path: str = "/points$") -> None:
        """Inject one fault into each of the next matching requests; None lets a request pass."""
        script = iter(list(faults))

        def choose(request_method: str, request_path: str) -> Fault | None:
            return next(script, None) if request_method == method and re.search(path, request_path) else None

        self._choose = choose

    def fail_randomly(self, rate: float, seed: int) -> None:
        """Inject a random fault into each request with probability `rate`."""
        rng = random.Random(seed)
        self._choose = lambda method, path: rng.choice(FAULTS) if rng.random() < rate else None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Answer no request while the block lasts, so that `store` may be used."""
        with self._lock:
            yield

    def fault(self, method: str, path: str) -> Fault | None:
        with self._lock:
            self.requests.append((method, path))
            self.request_times.append(time.monotonic())
            return self._choose(method, path)

    def answer(self, method: str, path: str, body: Any) -> Any:
        with self._lock:
            if _COLLECTION.match(path) and method == "PUT" and isinstance(body, dict) and self._is_old():
                body.pop("metadata", None)
            if self.strict:
                self._refuse_unindexed(path, body)
            if (index := _INDEX.fullmatch(path)) and method == "PUT":
                self.indexes.setdefault(index[1], {})[body["field_name"]] = body["field_schema"]
                return models.UpdateResult(operation_id=0, status=models.UpdateStatus.COMPLETED)
            result = _route(self.store, method, path, body)
            if isinstance(result, models.CollectionInfo):
                fields = self.indexes.get(path.removeprefix("/collections/"), {})
                result.payload_schema = {
                    field: models.PayloadIndexInfo(data_type=models.PayloadSchemaType(kind), points=0)
                    for field, kind in fields.items()
                }
            return result

    def _refuse_unindexed(self, path: str, body: Any) -> None:
        collection = _COLLECTION.match(path)
        if collection is None or not (collection[2] or "").startswith("/points"):
            return
        for field, kinds in _filtered_fields(body):
            index = self.indexes.get(collection[1], {}).get(field)
            if index is None or (kinds and index not in kinds):
                raise ValueError(
                    f'Bad request: Index required but not found for "{field}" of one of the following types: '
                    f"[{', '.join(kinds)}]. Help: Create an index for this key or use a different filter."
                )

    def _is_old(self) -> bool:
        return tuple(map(int, self.version.split(".")[:2])) < (1, 16)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing: a killed client closes its connection."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    shim: Shim

    def _handle(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"null")
        path = self.path.partition("?")[0].rstrip("/")
        if not path:
            return self._send({"title": "qdrant - vector search engine", "version": self.shim.version})
        fault = self.shim.fault(self.command, path)
        if self.shim.api_key and self.headers.get("api-key") != self.shim.api_key:
            return self._reply(401, "Invalid API key or JWT")
        if fault == "drop before":
            return self._hang_up()
        if fault in ("429", "408", "500", "503", "400", "404"):
            headers = (
                {"Retry-After": self.shim.retry_after} if fault == "429" and self.shim.retry_after is not None else {}
            )
            return self._reply(int(fault), f"a {fault} on purpose", headers)
        if fault == "delay":
            time.sleep(self.shim.delay_seconds)
        try:
            result = self.shim.answer(self.command, path, body)
        except ValueError as error:
            missing = "not found" in str(error) and "Index required" not in str(error)
            return self._reply(404 if missing else 409 if "already exists" in str(error) else 400, str(error))
        if fault == "drop after":
            return self._hang_up()
        if fault == "acknowledged" and isinstance(result, models.UpdateResult):
            result = models.UpdateResult(status=models.UpdateStatus.ACKNOWLEDGED)
        self._reply(200, result)

    do_GET = do_PUT = do_POST = do_DELETE = do_PATCH = _handle  # noqa: N815

    def _reply(self, code: int, result: Any, headers: dict[str, str] | None = None) -> None:
        status: Any = "ok" if code == 200 else {"error": str(result)}
        self._send({"result": _to_json(result) if code == 200 else None, "status": status, "time": 0.0}, code, headers)

    def _send(self, answer: Any, code: int = 200, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(answer).encode()
        try:
            self.send_response(code)
            for name, value in {
                "Content-Type": "application/json",
                "Content-Length": len(data),
                **(headers or {}),
            }.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(data)
        except OSError:  # the client was killed or timed out
            self.close_connection = True

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *arguments: object) -> None:
        pass


def _filtered_fields(body: Any, *, inside_filter: bool = False) -> Iterator[tuple[str, list[str]]]:
    """The payload fields that a request filters or groups by, each with the kinds of index that serve it ([]: any)."""
    if isinstance(body, list):
        for part in body:
            yield from _filtered_fields(part, inside_filter=inside_filter)
    elif isinstance(body, dict):
        if inside_filter and "key" in body:
            yield body["key"], _kinds(body)
        if "group_by" in body:
            yield body["group_by"], ["keyword"]
        for name, part in body.items():
            if name not in ("payload", "points", "vector", "query"):
                yield from _filtered_fields(part, inside_filter=inside_filter or name == "filter")


def _kinds(condition: dict[str, Any]) -> list[str]:
    if (bounds := condition.get("range")) is not None:
        dates = any(isinstance(bound, str) for bound in bounds.values())
        return ["datetime"] if dates else ["integer", "float"]
    match = condition.get("match") or {}
    sample = match.get("any", [match.get("value")])[0]
    kinds = {bool: ["bool"], int: ["integer"], str: ["keyword", "uuid"]}
    return kinds.get(type(sample), [])


def _route(store: QdrantClient, method: str, path: str, body: Any) -> Any:
    if path == "/collections":
        return store.get_collections()
    if path == "/aliases":
        return store.get_aliases()
    if path == "/collections/aliases":
        return store.update_collection_aliases(rest.ChangeAliasesOperation.model_validate(body).actions)
    match_path = _COLLECTION.match(path)
    if match_path is None:
        raise ValueError(f"the shim does not support {method} {path}")
    name, rest_of_path = match_path[1], match_path[2] or ""
    if method == "PUT" and rest_of_path.startswith("/vectors/"):
        config = rest.SparseVectorNameConfig.model_validate(body)
        return store.create_vector_name(name, rest_of_path.removeprefix("/vectors/"), config)
    match method, rest_of_path:
        case "GET", "/exists":
            return {"exists": store.collection_exists(name)}
        case "GET", "":
            return store.get_collection(name)
        case "DELETE", "":
            return store.delete_collection(name)
        case "PUT", "":
            settings = rest.CreateCollection.model_validate(body)
            return store.create_collection(
                name,
                settings.vectors,
                sparse_vectors_config=settings.sparse_vectors,
                metadata=settings.metadata,
            )
        case "PATCH", "":
            changes = rest.UpdateCollection.model_validate(body)
            return store.update_collection(name, metadata=changes.metadata)
        case "PUT", "/points/vectors":
            return store.update_vectors(name, rest.UpdateVectors.model_validate(body).points)
        case "PUT", "/points":
            return store.upsert(name, rest.PointsList.model_validate(body).points)
        case "POST", "/points":
            points = rest.PointRequest.model_validate(body)
            return store.retrieve(name, points.ids, points.with_payload or False, points.with_vector or False)
        case "POST", "/points/payload":
            payload = rest.SetPayload.model_validate(body)
            assert payload.points is not None
            return store.set_payload(name, payload.payload, payload.points)
        case "POST", "/points/delete":
            return store.delete(name, rest.PointIdsList.model_validate(body))
        case "POST", "/points/count":
            return store.count(name, rest.CountRequest.model_validate(body).filter)
        case "POST", "/points/query/batch":
            return store.query_batch_points(name, rest.QueryRequestBatch.model_validate(body).searches)
        case "POST", "/points/query":
            return store.query_batch_points(name, [rest.QueryRequest.model_validate(body)])[0]
        case "POST", "/points/query/groups":
            groups = rest.QueryGroupsRequest.model_validate(body)
            return store.query_points_groups(
                name,
                groups.group_by,
                query=groups.query,
                using=groups.using,
                query_filter=groups.filter,
                limit=groups.limit or 10,
                group_size=groups.group_size or 3,
                with_payload=True,
                score_threshold=groups.score_threshold,
            )
        case "POST", "/points/scroll":
            scroll = rest.ScrollRequest.model_validate(body)
            records, offset = store.scroll(
                name,
                scroll.filter,
                scroll.limit or 10,
                offset=scroll.offset,
                with_payload=scroll.with_payload if scroll.with_payload is not None else True,
                with_vectors=scroll.with_vector or False,
            )
            return {"points": records, "next_page_offset": offset}
    raise ValueError(f"the shim does not support {method} {path}")


def _to_json(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_none=True)
    if isinstance(value, list):
        return [_to_json(item) for item in value]
    if isinstance(value, dict):
        return {key: _to_json(item) for key, item in value.items()}
    return value
