"""The collection: what ingest and search agree on.

A collection says in its metadata which spec its vectors were made with, so no search compares what cannot be compared:

    collection.metadata   {"gircse": {"fingerprint": "...", "spec": {...}}}
    collection.vectors    {"gircse": d floats, cosine}
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import grpc
from pydantic import ValidationError
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import UnexpectedResponse

from gircse_rag.errors import InputError, SpecMismatchError, StoreError
from gircse_rag.qdrant.stores import store_errors, warn_if_outgrown
from gircse_rag.spec import EmbeddingSpec

if TYPE_CHECKING:
    from gircse_rag.embedder import Embedder

VECTOR = "gircse"
"""The name of the dense vector: `vector_name=` for LangChain, `dense_vector_name=` for LlamaIndex."""
RECORD = "gircse"
"""The payload key of a point's `Record`, and of the spec in the collection's metadata."""

_OURS = {"self", "collection_name", "vectors_config", "sparse_vectors_config", "metadata", "kwargs"}
_FORBIDDEN_IN_NAMES = frozenset('<>:"/\\|?*\0\x1f')


def ensure_collection(client: QdrantClient, name: str, spec: EmbeddingSpec) -> None:
    """Make the collection if there is none, else check that it takes vectors of `spec`.

    Raises:
        InputError: the name is not one Qdrant takes.
        SpecMismatchError, StoreError: as `check_collection`.
    """
    _check_name(name)
    if not _created(client, name, spec, {}, {}):
        check_collection(client, name, spec)


def create_collection(
    client: QdrantClient,
    name: str,
    embedder: Embedder,
    *,
    vector_params: Mapping[str, Any] | None = None,
    payload_indexes: Mapping[str, Any] | None = None,
    **options: Any,
) -> None:
    """Make an empty collection with a server's own settings. `ingest` makes one without any, if there is none.

    Args:
        vector_params: settings of the vector, for `models.VectorParams`: on_disk, hnsw_config, quantization_config,
            datatype.
        payload_indexes: payload field -> kind of index, such as {"metadata.kind": models.PayloadSchemaType.KEYWORD}.
        options: any of `QdrantClient.create_collection`: shard_number, sharding_method, replication_factor,
            write_consistency_factor, on_disk_payload, hnsw_config, optimizers_config, wal_config,
            quantization_config, timeout.

    Raises:
        InputError: the name is not one Qdrant takes, an option that Qdrant does not have, or a value it refuses.
        StoreError: the collection exists, the store has no such setting, or the server does not answer.
    """
    _check_name(name)
    with store_errors(client):
        if not _created(client, name, embedder.spec, vector_params or {}, options):
            raise StoreError(f"collection {name!r} exists; its settings can be changed by client.update_collection")
        for field, kind in (payload_indexes or {}).items():
            client.create_payload_index(name, field, kind, wait=True)


def _check_name(name: str) -> None:
    if not name or name in (".", "..") or len(name) > 255 or _FORBIDDEN_IN_NAMES & set(name):
        raise InputError(f'a collection cannot be called {name!r}: 1 to 255 characters, none of <>:"/\\|?*')


def _created(
    client: QdrantClient, name: str, spec: EmbeddingSpec, vector: Mapping[str, Any], options: Mapping[str, Any]
) -> bool:
    """Make the collection; False if there is one, made before or meanwhile."""
    if client.collection_exists(name):
        return False
    try:
        _create(client, name, spec, vector, options)
    except (UnexpectedResponse, grpc.RpcError, StoreError, ValueError):
        # If there is one now, another has just made it; each kind of store says so by another error.
        if not client.collection_exists(name):
            raise
        return False
    return True


def _create(
    client: QdrantClient, name: str, spec: EmbeddingSpec, vector: Mapping[str, Any], options: Mapping[str, Any]
) -> None:
    known = set(inspect.signature(QdrantClient.create_collection).parameters) - _OURS
    if unknown := sorted(set(options) - known):
        raise InputError(
            f"Qdrant's create_collection has no option {', '.join(unknown)}; it has {', '.join(sorted(known))}"
        )
    try:
        params = models.VectorParams(size=spec.dimension, distance=models.Distance.COSINE, **vector)
    except (ValidationError, TypeError) as error:
        raise InputError(f"vector_params {dict(vector)!r} are refused: {error}") from error
    try:  # here, for every store; over gRPC the client would raise errors of other kinds
        models.CreateCollection(**{option: value for option, value in options.items() if option != "timeout"})
    except ValidationError as error:
        raise InputError(f"options {dict(options)!r} are refused: {error}") from error
    client.create_collection(
        name,
        vectors_config={VECTOR: params},
        metadata={RECORD: {"fingerprint": spec.fingerprint, "spec": spec.to_dict()}},
        **options,
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
    info = client.get_collection(name)
    config = info.config
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
    warn_if_outgrown(client, name, info)
