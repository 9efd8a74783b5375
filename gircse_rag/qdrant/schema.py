"""The store and the collection: what ingest and search agree on.

A collection says in its metadata which spec its vectors were made with, so no search compares what cannot be compared:

    collection.metadata   {"gircse": {"fingerprint": "...", "spec": {...}}}
    collection.vectors    {"gircse": d floats, cosine}
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from gircse_rag.errors import InputError, SpecMismatchError, StoreError
from gircse_rag.spec import EmbeddingSpec

VECTOR = "gircse"
"""The name of the dense vector: `vector_name=` for LangChain, `dense_vector_name=` for LlamaIndex."""
RECORD = "gircse"
"""The payload key of a point's `Record`, and of the spec in the collection's metadata."""
DEFAULT_PATH = "./qdrant"

_FORBIDDEN_IN_NAMES = frozenset('<>:"/\\|?*\0\x1f')


def open_client(
    path: str | os.PathLike[str] | None = None, url: str | None = None, *, create: bool = True
) -> QdrantClient:
    """A Qdrant client: a server by `url`, or by QDRANT_URL if neither is given, else an embedded store in a folder.

    Args:
        path: folder of an embedded store; "./qdrant" if nothing else is named. One process at a time may have it open.
        url: of a server or cluster; its key comes from QDRANT_API_KEY.
        create: whether an embedded store that does not exist is made. A search passes False.

    Raises:
        InputError: both `path` and `url`, or a `url` that is none.
        StoreError: the embedded store is open in another process, missing, damaged or not permitted. A server is not
            contacted here: one that is down shows at the first use.
    """
    if path is not None and url is not None:
        raise InputError(f"path ({path}) and url ({url}) name two stores; give one")
    if path is None and (url := url or os.environ.get("QDRANT_URL")):
        try:
            return QdrantClient(url=url, api_key=os.environ.get("QDRANT_API_KEY"), check_compatibility=False)
        except ValueError as error:
            raise InputError(f"{url!r} is no URL of a Qdrant server ({error}); write http://host:6333") from error
    folder = Path(DEFAULT_PATH if path is None else path)
    if not create and not (folder / "meta.json").exists():
        raise StoreError(f"there is no Qdrant store in {folder}; ingest documents first, or name another folder or url")
    try:
        return QdrantClient(path=str(folder))
    except RuntimeError as error:
        if "already accessed" not in str(error):
            raise
        raise StoreError(
            f"the Qdrant store in {folder} is already open, and an embedded store takes one client at a time; close "
            "the other process, or run a Qdrant server and give its url"
        ) from error
    except (OSError, ValueError, sqlite3.Error) as error:
        raise StoreError(f"{folder} cannot be opened as a Qdrant store: {error}; name another folder") from error


@contextmanager
def store_errors(client: QdrantClient) -> Iterator[None]:
    """Turn what a store can do wrong into StoreError: no answer, a refusal, an answer that is none, a damaged file."""
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


def ensure_collection(client: QdrantClient, name: str, spec: EmbeddingSpec) -> None:
    """Make the collection if there is none, else check that it takes vectors of `spec`.

    Raises:
        InputError: the name is not one Qdrant takes.
        SpecMismatchError, StoreError: as `check_collection`.
    """
    if not name or name in (".", "..") or len(name) > 255 or _FORBIDDEN_IN_NAMES & set(name):
        raise InputError(f'a collection cannot be called {name!r}: 1 to 255 characters, none of <>:"/\\|?*')
    if client.collection_exists(name):
        check_collection(client, name, spec)
        return
    client.create_collection(
        name,
        vectors_config={VECTOR: models.VectorParams(size=spec.dimension, distance=models.Distance.COSINE)},
        metadata={RECORD: {"fingerprint": spec.fingerprint, "spec": spec.to_dict()}},
    )


def check_collection(client: QdrantClient, name: str, spec: EmbeddingSpec) -> None:
    """Check that vectors of `spec` may be compared with those of the collection.

    A dtype that differs warns (GircseWarning).

    Raises:
        StoreError: there is no such collection, it is not one of ours, or its vectors have another name or dimension.
        SpecMismatchError: it was made with another spec; names both sides and every field that differs.
    """
    if not client.collection_exists(name):
        known = ", ".join(sorted(there.name for there in client.get_collections().collections)) or "none"
        raise StoreError(f"there is no collection {name!r} (there is: {known}); ingest documents first")
    config = client.get_collection(name).config
    note = (config.metadata or {}).get(RECORD)
    if not isinstance(note, dict) or not isinstance(note.get("spec"), dict):
        raise StoreError(
            f"collection {name!r} was not made by gircse: it does not say which model its vectors come from; use "
            "another collection name"
        )
    try:
        stored = EmbeddingSpec.from_dict(note["spec"])
    except InputError as error:
        raise StoreError(f"collection {name!r} holds a spec that cannot be read: {error}") from error
    spec.check_matches(stored, theirs=f"collection {name!r}")
    if note.get("fingerprint") != spec.fingerprint:
        raise SpecMismatchError(
            f"collection {name!r} carries the fingerprint {note.get('fingerprint')}, this embedder {spec.fingerprint}, "
            "for a spec that reads the same: another version of gircse-rag wrote it; embed into a new collection"
        )
    vectors = config.params.vectors
    params = vectors.get(VECTOR) if isinstance(vectors, dict) else None
    if params is None or params.size != spec.dimension or params.distance != models.Distance.COSINE:
        there = vectors if isinstance(vectors, dict) else {"": vectors}
        found = ", ".join(f"{key!r}: {p.size} {p.distance.value}" for key, p in there.items() if p is not None)
        raise StoreError(
            f"collection {name!r} has the vectors ({found or 'none'}), this embedder needs {VECTOR!r}: "
            f"{spec.dimension} Cosine; use another collection name"
        )
