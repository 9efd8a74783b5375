"""Opening a store, and what a store can do wrong.

local    qdrant_client's embedded mode: a folder, one process, exact search by brute force; see `take_turns`
edge     Qdrant's own engine in this process (`gircse_rag.qdrant.edge`): a folder, one process, a real index
server   a Qdrant server or cluster, by url
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import sqlite3
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import grpc
from qdrant_client import QdrantClient, models
from qdrant_client.common.client_exceptions import QdrantException
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse
from qdrant_client.local.qdrant_local import QdrantLocal

from gircse_rag.errors import GircseWarning, InputError, StoreError

DEFAULT_PATH = "./qdrant"
TIMEOUT = 60
"""Seconds for one request to a server. The client's own 5 are too few for a batch that a busy server confirms."""
LOCAL_POINTS, UNINDEXED_POINTS = 20_000, 20_000
"""Above so many points local mode, or an edge store without an index, takes tens of milliseconds a question."""


@runtime_checkable
class IndexedOnDemand(Protocol):
    """A client whose store builds its vector index when told to (the edge store), not by itself (a server)."""

    def build_index(self, collection: str) -> bool:
        """Index the vectors that are not indexed yet."""
        ...


def build_index(client: QdrantClient, collection: str) -> None:
    """Build the index of a collection, where the store does not do so by itself. Call it after an ingest."""
    if isinstance(client, IndexedOnDemand):
        client.build_index(collection)


Engine = Literal["local", "edge"]
_MARKS: dict[Engine, str] = {"local": "meta.json", "edge": "edge.json"}
"""The file that says which engine a folder belongs to."""
_warned: WeakKeyDictionary[QdrantClient, set[str]] = WeakKeyDictionary()


def open_client(
    path: str | os.PathLike[str] | None = None,
    url: str | None = None,
    *,
    create: bool = True,
    engine: Engine | None = None,
    prefer_grpc: bool = False,
    grpc_port: int = 6334,
    write_ordering: Literal["weak", "medium", "strong"] | None = None,
) -> QdrantClient:
    """A Qdrant client: a server by `url`, or by QDRANT_URL if neither is given, else an embedded store in a folder.

    Args:
        path: folder of an embedded store; "./qdrant" if nothing else is named. One process at a time may have it open.
        url: of a server or cluster; its key comes from QDRANT_API_KEY.
        create: whether an embedded store that does not exist is made. A search passes False.
        engine: of an embedded store that is made, "local" if None. One that exists is opened by its own.
        prefer_grpc: talk to a server by gRPC where it can.
        grpc_port: on which it listens for that.
        write_ordering: of all writes to a cluster, Qdrant's own if None: "medium" sends them through a leader that may
            change, "strong" through one that is always the same.

    Raises:
        InputError: both `path` and `url`, a `url` that is none, or an `engine` that is none or not the folder's.
        StoreError: the embedded store is open in another process, missing, damaged or not permitted. A server is not
            contacted here: one that is down shows at the first use.
        MissingExtraError: the edge engine is not installed.
    """
    if path is not None and url is not None:
        raise InputError(f"path ({path}) and url ({url}) name two stores; give one")
    if engine is not None and engine not in _MARKS:
        raise InputError(f"engine must be {' or '.join(map(repr, _MARKS))}, not {engine!r}")
    if path is None and (url := url or os.environ.get("QDRANT_URL")):
        if engine is not None:
            raise InputError(f"engine={engine!r} is for an embedded store, and {url} is a server; give a path")
        if write_ordering is not None and write_ordering not in list(models.WriteOrdering):
            raise InputError(f"write_ordering must be weak, medium or strong, not {write_ordering!r}")
        try:
            return _Server(
                write_ordering,
                url=url,
                api_key=os.environ.get("QDRANT_API_KEY"),
                prefer_grpc=prefer_grpc,
                grpc_port=grpc_port,
                timeout=TIMEOUT,
                check_compatibility=False,
            )
        except ValueError as error:
            raise InputError(f"{url!r} is no URL of a Qdrant server ({error}); write http://host:6333") from error
    folder = Path(DEFAULT_PATH if path is None else path)
    there = next((kind for kind, mark in _MARKS.items() if (folder / mark).exists()), None)
    if there is None and not create:
        raise StoreError(f"there is no Qdrant store in {folder}; ingest documents first, or name another folder or url")
    if engine is not None and there not in (None, engine):
        raise InputError(f"{folder} holds a store of engine {there!r}, not {engine!r}; name another folder")
    return _open_edge(folder) if (there or engine) == "edge" else _open_local(folder)


class _Server(QdrantClient):
    """A client whose writes all have one ordering, whoever makes them."""

    def __init__(self, ordering: str | None, **options: Any) -> None:
        super().__init__(**options)
        self._ordering = {} if ordering is None else {"ordering": models.WriteOrdering(ordering)}

    def upsert(self, *args: Any, **kwargs: Any) -> models.UpdateResult:
        return super().upsert(*args, **{**self._ordering, **kwargs})

    def delete(self, *args: Any, **kwargs: Any) -> models.UpdateResult:
        return super().delete(*args, **{**self._ordering, **kwargs})

    def set_payload(self, *args: Any, **kwargs: Any) -> models.UpdateResult:
        return super().set_payload(*args, **{**self._ordering, **kwargs})


def _open_local(folder: Path) -> QdrantClient:
    try:
        client = QdrantClient(path=str(folder))
        take_turns(client)
        return client
    except RuntimeError as error:
        if "already accessed" not in str(error):
            raise
        raise StoreError(
            f"the Qdrant store in {folder} is already open, and an embedded store takes one client at a time; close "
            "the other process, or run a Qdrant server and give its url"
        ) from error
    except (OSError, ValueError, sqlite3.Error) as error:
        raise StoreError(f"{folder} cannot be opened as a Qdrant store: {error}; name another folder") from error


class _InTurn(QdrantLocal):
    """Local mode, which is not thread-safe, with a lock around each of its public methods (the loop below)."""

    _turn: threading.RLock

    def upload_points(self, collection_name: str, points: Iterable[Any], *args: Any, **kwargs: Any) -> None:
        # Taken from their iterator before it is our turn: the iterator may wait for another thread that asks us.
        points = list(points)
        with self._turn:
            super().upload_points(collection_name, points, *args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """Of a copy, which has a lock of its own."""
        return {**vars(self), "_turn": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _turn=threading.RLock())


def _locked(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def in_turn(self: _InTurn, *args: Any, **kwargs: Any) -> Any:
        with self._turn:
            return method(self, *args, **kwargs)

    return in_turn


for _name, _method in inspect.getmembers(QdrantLocal, inspect.isfunction):
    if not _name.startswith("_") and _name not in vars(_InTurn):
        setattr(_InTurn, _name, _locked(_method))


def take_turns(client: QdrantClient) -> None:
    """From now on several threads may ask this client, whoever made it: in turn if it is one of local mode.

    That holds for all who have the client, such as LangChain. A call that is under way just now is not waited for.
    """
    local = client._client
    if type(local) is QdrantLocal:
        vars(local).setdefault("_turn", threading.RLock())  # one, whichever thread comes first
        local.__class__ = _InTurn


def _open_edge(folder: Path) -> QdrantClient:
    from gircse_rag.qdrant.edge import EdgeClient

    try:
        return EdgeClient(folder)
    except (OSError, ValueError, KeyError) as error:
        raise StoreError(f"{folder} cannot be opened as an edge store: {error}; name another folder") from error


def warn_if_outgrown(client: QdrantClient, name: str, info: models.CollectionInfo) -> None:
    """Say once a client and collection that it has more points than its store answers quickly for (GircseWarning)."""
    points, said = info.points_count or 0, _warned.setdefault(client, set())
    if name in said:
        return
    if isinstance(client._client, QdrantLocal) and points > LOCAL_POINTS:
        advice = (
            'every question compares with each of them; ingest into an edge store (engine="edge", --store edge), which '
            "has an index, or into a Qdrant server"
        )
    elif isinstance(client, IndexedOnDemand) and points - (info.indexed_vectors_count or 0) > UNINDEXED_POINTS:
        advice = f"many of them are not indexed yet; call client.build_index({name!r}) once the ingest is done"
    else:
        return
    said.add(name)
    warnings.warn(f"collection {name!r} has {points:,} points, and {advice}", GircseWarning, stacklevel=4)


def store_name(client: QdrantClient) -> str:
    """What messages call the store."""
    return str(client.init_options.get("url") or client.init_options.get("path") or "the store")


@contextmanager
def store_errors(client: QdrantClient) -> Iterator[None]:
    """Around all that is asked of a store: turns what it can do wrong into StoreError (no answer, a refusal, an answer
    that is none, a damaged file), and has threads take turns where it is not thread-safe (`take_turns`)."""
    take_turns(client)
    try:
        yield
    except ResponseHandlingException as error:
        raise StoreError(
            f"the Qdrant server at {client.init_options.get('url')} does not answer ({error.source or error}); is it "
            "running, and is the url right? what was written before is safe: run again"
        ) from error
    except UnexpectedResponse as error:
        if error.status_code in (401, 403):
            raise StoreError(
                f"the Qdrant server at {client.init_options.get('url')} refuses access (HTTP {error.status_code}); set "
                "QDRANT_API_KEY to a key that may do this"
            ) from error
        raise StoreError(
            f"the server at {client.init_options.get('url')} answered HTTP {error.status_code} "
            f"({error.content[:200].decode(errors='replace').strip() or error.reason_phrase}); is it a Qdrant "
            "server, and well? what was written before is safe: run again"
        ) from error
    except (grpc.RpcError, QdrantException) as error:
        said = error.details() if isinstance(error, grpc.Call) else error
        raise StoreError(
            f"the Qdrant server at {client.init_options.get('url')} refuses ({said}); what was written before is safe: "
            "run again"
        ) from error
    except json.JSONDecodeError as error:
        raise StoreError(
            f"the server at {client.init_options.get('url')} answered with something that is not JSON; is it a Qdrant "
            "server?"
        ) from error
    except sqlite3.Error as error:
        raise StoreError(
            f"the embedded Qdrant store {client.init_options.get('path')} is damaged or its disk is full ({error}); "
            "restore the folder, or name another and ingest again"
        ) from error
