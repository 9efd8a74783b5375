"""Open a store, and translate its errors to `StoreError`.

local    qdrant_client's embedded mode: a folder, one process, exact search by brute force; see `local`
edge     Qdrant's engine in this process (`gircse_rag.qdrant.edge`): a folder, one process, an HNSW index
server   a Qdrant server or cluster, by url
"""

from __future__ import annotations

import atexit
import json
import os
import re
import sqlite3
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable
from weakref import WeakKeyDictionary, WeakSet

import grpc
from qdrant_client import QdrantClient, models
from qdrant_client.common.client_exceptions import QdrantException
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse
from qdrant_client.local.qdrant_local import QdrantLocal

from gircse_rag.errors import GircseWarning, InputError, StoreError, first_line
from gircse_rag.qdrant import local
from gircse_rag.qdrant.local import serialize_access
from gircse_rag.qdrant.retry import answer_text
from gircse_rag.redaction import redact
from gircse_rag.urls import read_credentials

DEFAULT_PATH = "./qdrant"
_UNINDEXED = re.compile(r'Index required but not found for \\*"([^"\\]+)')
"""What a server in strict mode answers to a filter on a field without an index."""
TIMEOUT = 60
"""Seconds per request to a server. The client's default of 5 is too short for a batch written to a busy server."""
LOCAL_POINTS, UNINDEXED_POINTS = 20_000, 20_000
"""Points above which local mode, or an edge store without index, needs tens of milliseconds per question."""


@runtime_checkable
class IndexedOnDemand(Protocol):
    """A client whose store builds its index on request (the edge store), not automatically (a server)."""

    def build_index(self, collection: str) -> bool:
        """Index all vectors without an index; return whether the index grew."""


def build_index(client: QdrantClient, collection: str) -> None:
    """Build the index of a collection if its store does not do so automatically. Call this after an ingest."""
    if isinstance(client, IndexedOnDemand):
        client.build_index(collection)


Engine = Literal["local", "edge"]
_MARKER_FILES: dict[Engine, str] = {"local": local.META, "edge": "edge.json"}
"""The file by which a store folder's engine is recognised."""
_warned: WeakKeyDictionary[QdrantClient, set[str]] = WeakKeyDictionary()
_embedded: WeakSet[QdrantClient] = WeakSet()
"""Clients of embedded stores. Those still open at exit are closed while Python can still import what closing needs."""


@atexit.register
def _close_embedded() -> None:
    for client in list(_embedded):
        with suppress(Exception):
            client.close()


def open_client(
    path: str | os.PathLike[str] | None = None,
    url: str | None = None,
    *,
    create: bool = True,
    engine: Engine | None = None,
    prefer_grpc: bool = False,
    grpc_port: int = 6334,
    write_ordering: Literal["weak", "medium", "strong"] | None = None,
    repair: bool = False,
) -> QdrantClient:
    """Open a Qdrant client for a server (`url`, or QDRANT_URL without `path`), else for an embedded store.

    Args:
        path: folder of an embedded store (default "./qdrant"). One process at a time can have it open. Opening a local
            store unpickles its points, which can run code. So the default folder must be a store that you made there;
            a folder that you name only warns once (GircseWarning) if you did not make the store.
        url: URL of a server or cluster; the API key is read from QDRANT_API_KEY. A user and password in it are sent as
            HTTP basic authentication, and hidden in messages. Secrets over plain HTTP warn once (GircseWarning).
        create: whether to create a missing embedded store. A search passes False.
        engine: engine of a new embedded store (default "local"). An existing store is opened with its own engine.
        prefer_grpc: use gRPC where the server supports it.
        grpc_port: the server's gRPC port.
        write_ordering: ordering of all writes to a cluster (default: Qdrant's). "medium" writes through a leader that
            may change, "strong" through a permanent leader.
        repair: delete the points of a local store that are damaged so that they cannot be read, with a warning
            (GircseWarning). One such point keeps the whole store from being opened.

    Raises:
        InputError: both `path` and `url` are given, `url` is not a URL, or `engine` is unknown or not the folder's.
        StoreError: the embedded store is open in another process, missing, damaged or not accessible, or the default
            folder holds a local store that you did not make. A server is contacted only at first use.
        MissingExtraError: the edge engine is not installed.
    """
    if path is not None and url is not None:
        raise InputError(f"path ({path}) and url ({url}) name two stores; give only one")
    if engine is not None and engine not in _MARKER_FILES:
        raise InputError(f"engine must be {' or '.join(map(repr, _MARKER_FILES))}, not {engine!r}")
    if path is None and (url := url or os.environ.get("QDRANT_URL")):
        if engine is not None:
            raise InputError(f"engine={engine!r} is for an embedded store, but {url} is a server; give a path")
        if write_ordering is not None and write_ordering not in list(models.WriteOrdering):
            raise InputError(f"write_ordering must be weak, medium or strong, not {write_ordering!r}")
        url, basic, key = read_credentials(url, "QDRANT_API_KEY")
        # As a header, because the client warns of any `api_key` over plain HTTP, even on this machine.
        headers = {name: value for name, value in (("authorization", basic), ("api-key", key)) if value}
        try:
            return _ServerClient(
                write_ordering,
                url=url,
                https=True if key else None,  # as with `api_key`, if the url has no scheme
                headers=headers,
                prefer_grpc=prefer_grpc,
                grpc_port=grpc_port,
                timeout=TIMEOUT,
                check_compatibility=False,
            )
        except ValueError as error:
            raise InputError(f"{url!r} is no URL of a Qdrant server ({error}); write http://host:6333") from error
    folder = Path(DEFAULT_PATH if path is None else path)
    existing = _find_engine(folder)
    if existing is None and not create:
        raise StoreError(f"there is no Qdrant store in {folder}; ingest documents first, or give another path or url")
    if engine is not None and existing not in (None, engine):
        raise InputError(f"{folder} holds a store of engine {existing!r}, not {engine!r}; name another folder")
    edge = (existing or engine) == "edge"
    client = _open_edge(folder) if edge else local.open_local(folder, implicit=path is None, repair=repair)
    _embedded.add(client)
    return client


def open_to_read(path: str | os.PathLike[str] | None = None, url: str | None = None) -> QdrantClient:
    """Open a store without creating one: an empty store in memory stands in for an embedded store that is missing.

    Raises:
        InputError, StoreError, MissingExtraError: as `open_client`.
    """
    embedded = path is not None or not (url or os.environ.get("QDRANT_URL"))
    if embedded and url is None and _find_engine(Path(DEFAULT_PATH if path is None else path)) is None:
        return QdrantClient(":memory:")
    return open_client(path, url, create=False)


def _find_engine(folder: Path) -> Engine | None:
    """The engine of the store in a folder, or None if there is no store."""
    return next((kind for kind, mark in _MARKER_FILES.items() if (folder / mark).exists()), None)


class _ServerClient(QdrantClient):
    """A client that applies one write ordering to all writes, also those of other libraries."""

    def __init__(self, ordering: str | None, **options: Any) -> None:
        super().__init__(**options)
        self._ordering = {} if ordering is None else {"ordering": models.WriteOrdering(ordering)}

    def upsert(self, *args: Any, **kwargs: Any) -> models.UpdateResult:
        return super().upsert(*args, **{**self._ordering, **kwargs})

    def delete(self, *args: Any, **kwargs: Any) -> models.UpdateResult:
        return super().delete(*args, **{**self._ordering, **kwargs})

    def set_payload(self, *args: Any, **kwargs: Any) -> models.UpdateResult:
        return super().set_payload(*args, **{**self._ordering, **kwargs})


def _open_edge(folder: Path) -> QdrantClient:
    from gircse_rag.qdrant.edge import EdgeClient

    try:
        return EdgeClient(folder)
    except OSError as error:
        raise StoreError(f"{folder} cannot be opened as an edge store: {error}; name another folder") from error
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{folder / _MARKER_FILES['edge']} is damaged ({first_line(error)}); it holds only aliases: restore it "
            'from a backup, or write {"aliases": {}} into it'
        ) from error


def warn_if_outgrown(client: QdrantClient, name: str, info: models.CollectionInfo) -> None:
    """Warn once per client and collection that is too large for its store (GircseWarning)."""
    points = info.points_count or 0
    if isinstance(client._client, QdrantLocal) and points > LOCAL_POINTS:
        advice = (
            'every question is compared with each of them; ingest into an edge store (engine="edge", --store edge), '
            "which has an index, or into a Qdrant server"
        )
    elif isinstance(client, IndexedOnDemand) and points - (info.indexed_vectors_count or 0) > UNINDEXED_POINTS:
        advice = f"many of them are not indexed yet; call client.build_index({name!r}) once the ingest is done"
    else:
        return
    warn_once(client, f"size {name}", f"collection {name!r} has {points:,} points, and {advice}")


def warn_once(client: QdrantClient, topic: str, message: str) -> None:
    """Warn once per client and topic (GircseWarning)."""
    warned = _warned.setdefault(client, set())
    if topic not in warned:
        warned.add(topic)
        warnings.warn(message, GircseWarning, stacklevel=5)


def store_name(client: QdrantClient) -> str:
    """The store's name in messages: its url or path."""
    return redact(str(client.init_options.get("url") or client.init_options.get("path") or "the store"))


@contextmanager
def store_errors(client: QdrantClient) -> Iterator[None]:
    """Raise StoreError for whatever a store can do wrong: no answer, a refusal, a malformed answer, a damaged file.

    Use around every access to a store. Also makes the client safe for several threads (`serialize_access`)."""
    serialize_access(client)
    server = f"server at {client.init_options.get('url')}"
    again = "earlier writes are safe, run again"
    try:
        yield
    except ResponseHandlingException as error:
        raise StoreError(
            f"the Qdrant {server} does not answer ({error.source or error}); check that it is running and that the url "
            f"is right; {again}"
        ) from error
    except UnexpectedResponse as error:
        status = f"HTTP {error.status_code}"
        if error.status_code in (401, 403):
            advice = "set QDRANT_API_KEY to a key that may do this"
            raise StoreError(f"the Qdrant {server} refuses access ({status}); {advice}") from error
        advice = f"check that it is a Qdrant server in good health; {again}"
        if field := _UNINDEXED.search(answer_text(error)):
            key = field[1].removeprefix("metadata.")
            advice = f"it filters by indexed fields only: ingest once more with --index {key}=keyword, or another kind"
        raise StoreError(f"the {server} answered {status} ({answer_text(error)}); {advice}") from error
    except (grpc.RpcError, QdrantException) as error:
        details = error.details() if isinstance(error, grpc.Call) else error
        raise StoreError(f"the Qdrant {server} refuses ({details}); {again}") from error
    except json.JSONDecodeError as error:
        advice = "check that the url is that of a Qdrant server"
        raise StoreError(f"the {server} answered with something that is not JSON; {advice}") from error
    except sqlite3.Error as error:
        raise StoreError(
            f"the embedded Qdrant store {client.init_options.get('path')} is damaged or its disk is full ({error}); "
            "restore the folder, or ingest again into another"
        ) from error
