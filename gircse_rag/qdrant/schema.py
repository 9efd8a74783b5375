"""The layout of a collection, shared by ingest and search.

The collection's metadata stores the spec of its vectors, so a search with an incompatible model is refused:

    collection.metadata         {"gircse": {"fingerprint": "...", "spec": {...}, "lexical": {...}}}
    collection.vectors          {"gircse": d floats, cosine}
    collection.sparse_vectors   {"bm25": IDF modifier}, see `lexical`
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import grpc
from pydantic import ValidationError
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from gircse_rag.errors import InputError, SpecMismatchError, StoreError
from gircse_rag.lexical import DEFAULT_LANGUAGE, Bm25Encoder
from gircse_rag.qdrant.indexes import check_kinds, ensure_indexes
from gircse_rag.qdrant.lexical import check_language, encoder_of, lexical_metadata, sparse_params
from gircse_rag.qdrant.limits import check_name
from gircse_rag.qdrant.stores import store_errors, store_name, warn_if_outgrown
from gircse_rag.spec import EmbeddingSpec

if TYPE_CHECKING:
    from gircse_rag.embedder import Embedder

VECTOR = "gircse"
"""The name of the dense vector: `vector_name=` for LangChain, `dense_vector_name=` for LlamaIndex."""
RECORD = "gircse"
"""Payload key of a point's `Record`, and key of the spec in the collection's metadata."""

_SET_BY_US = {"self", "collection_name", "vectors_config", "sparse_vectors_config", "metadata", "kwargs"}


def ensure_collection(
    client: QdrantClient,
    name: str,
    spec: EmbeddingSpec,
    language: str | None = None,
    indexes: Mapping[str, str] | None = None,
) -> Bm25Encoder | None:
    """Create the collection if it does not exist, else check that its vectors were made with `spec`.

    Creates the payload indexes that the collection lacks.

    Args:
        language: of the lexical vector; None takes the collection's, and English for a new one.
        indexes: metadata key -> kind of payload index.

    Returns:
        the encoder of the lexical vector, or None if an earlier version made the collection without one.

    Raises:
        InputError: Qdrant does not allow the name, the language is unknown or not the collection's, or there is no such
            kind of index.
        SpecMismatchError, StoreError: as `check_collection`, or the server is older than 1.16.
    """
    check_kinds(indexes or {})
    _create_if_missing(client, name, spec, {}, {}, language)
    info, encoder = read_collection(client, name, spec)
    check_language(name, language, encoder)
    ensure_indexes(client, name, info.payload_schema, indexes or {})
    return encoder


def create_collection(
    client: QdrantClient,
    name: str,
    embedder: Embedder,
    *,
    vector_params: Mapping[str, Any] | None = None,
    payload_indexes: Mapping[str, Any] | None = None,
    language: str = DEFAULT_LANGUAGE,
    **options: Any,
) -> None:
    """Create an empty collection with custom settings. Without it, `ingest` creates one with default settings.

    Args:
        vector_params: further arguments of `models.VectorParams`: on_disk, hnsw_config, quantization_config, datatype.
        payload_indexes: payload field -> index type, such as {"metadata.kind": models.PayloadSchemaType.KEYWORD}.
        language: language of the texts, for the stemmer and the stop words of the lexical vector.
        options: arguments of `QdrantClient.create_collection`: shard_number, sharding_method, replication_factor,
            write_consistency_factor, on_disk_payload, hnsw_config, optimizers_config, wal_config,
            quantization_config, timeout.

    Raises:
        InputError: Qdrant does not allow the name, an option or a value.
        StoreError: the collection exists, the store does not support a setting, or the server does not answer.
    """
    with store_errors(client):
        if not _create_if_missing(client, name, embedder.spec, vector_params or {}, options, language):
            raise StoreError(f"collection {name!r} exists; change its settings with client.update_collection")
        ensure_indexes(client, name, payload_indexes or {}, {})
        for field, kind in (payload_indexes or {}).items():
            client.create_payload_index(name, field, kind, wait=True)


def _create_if_missing(
    client: QdrantClient,
    name: str,
    spec: EmbeddingSpec,
    vector: Mapping[str, Any],
    options: Mapping[str, Any],
    language: str | None,
) -> bool:
    """Create the collection. Returns False if it already exists, also if another process creates it meanwhile."""
    check_name(name)
    if client.collection_exists(name):
        return False
    known = set(inspect.signature(QdrantClient.create_collection).parameters) - _SET_BY_US
    if unknown := sorted(set(options) - known):
        raise InputError(
            f"Qdrant's create_collection has no option {', '.join(unknown)}; it has {', '.join(sorted(known))}"
        )
    try:
        params = models.VectorParams(size=spec.dimension, distance=models.Distance.COSINE, **vector)
    except (ValidationError, TypeError) as error:
        raise InputError(f"vector_params {dict(vector)!r} are not valid: {error}") from error
    try:  # checked here for every store, because over gRPC the client raises other types of error
        models.CreateCollection(**{option: value for option, value in options.items() if option != "timeout"})
    except ValidationError as error:
        raise InputError(f"options {dict(options)!r} are not valid: {error}") from error
    stamp = {"fingerprint": spec.fingerprint, "spec": spec.to_dict(), **lexical_metadata(language)}
    settings = {"vectors_config": {VECTOR: params}, "sparse_vectors_config": sparse_params(), **options}
    try:
        client.create_collection(name, metadata={RECORD: stamp}, **settings)
    except (UnexpectedResponse, grpc.RpcError, StoreError, ValueError) as error:
        # Another process may have created it just now, which each kind of store reports with another error.
        if client.collection_exists(name):
            return False
        if type(error) is ValueError:  # over gRPC: an integer out of range
            raise InputError(f"collection {name!r} cannot be created with these settings: {error}") from error
        raise
    if RECORD not in (client.get_collection(name).config.metadata or {}):
        client.delete_collection(name)  # nobody could search it, because nothing says which model made its vectors
        raise StoreError(
            f"the Qdrant server at {store_name(client)} does not keep collection metadata{_server_version(client)}, "
            "where gircse records the model: use a server of version 1.16 or later"
        )
    return True


def _server_version(client: QdrantClient) -> str:
    """The server's version in brackets, or nothing if it does not tell."""
    try:
        return f" (its version is {client.info().version})"
    except (NotImplementedError, UnexpectedResponse, ResponseHandlingException, ValidationError, grpc.RpcError):
        return ""


def check_collection(client: QdrantClient, name: str, spec: EmbeddingSpec) -> Bm25Encoder | None:
    """Check that vectors made with `spec` are comparable with those of the collection.

    A different dtype only warns (GircseWarning).

    Returns:
        the encoder of the collection's lexical vector, or None if it has none.

    Raises:
        InputError: no collection can have this name.
        StoreError: the collection does not exist, gircse did not make it, or its vectors have another name or size.
        SpecMismatchError: the collection was made with another spec; names every field that differs.
    """
    return read_collection(client, name, spec)[1]


def read_collection(
    client: QdrantClient, name: str, spec: EmbeddingSpec
) -> tuple[models.CollectionInfo, Bm25Encoder | None]:
    """As `check_collection`, with the collection's description."""
    info, stored, stamped = read_stamp(client, name)
    spec.check_matches(stored, theirs=f"collection {name!r}")
    if stamped != spec.fingerprint:
        raise SpecMismatchError(
            f"collection {name!r} has the fingerprint {stamped}, this embedder {spec.fingerprint}, for the same spec: "
            "another version of gircse-rag made the collection; embed into a new one"
        )
    vectors = info.config.params.vectors
    params = vectors.get(VECTOR) if isinstance(vectors, dict) else None
    if params is None or params.size != spec.dimension or params.distance != models.Distance.COSINE:
        existing = vectors if isinstance(vectors, dict) else {"": vectors}
        listed = ", ".join(f"{key!r}: {p.size} {p.distance.value}" for key, p in existing.items() if p is not None)
        raise StoreError(
            f"collection {name!r} has the vectors ({listed or 'none'}), this embedder needs {VECTOR!r}: "
            f"{spec.dimension} Cosine; use another collection name"
        )
    warn_if_outgrown(client, name, info)
    return info, encoder_of(name, info.config, (info.config.metadata or {})[RECORD])


def read_stamp(client: QdrantClient, name: str) -> tuple[models.CollectionInfo, EmbeddingSpec, object]:
    """Read what gircse recorded when it made the collection.

    Returns the collection's description, the spec of its vectors, and the fingerprint of that spec at that time.

    Raises:
        InputError: no collection can have this name.
        StoreError: the collection does not exist, gircse did not make it, or its spec cannot be read.
    """
    check_name(name)
    if not client.collection_exists(name):
        known = ", ".join(sorted(each.name for each in client.get_collections().collections)) or "none"
        raise StoreError(f"there is no collection {name!r} (there is: {known}); ingest documents first")
    info = client.get_collection(name)
    stamp = (info.config.metadata or {}).get(RECORD)
    if not isinstance(stamp, dict) or not isinstance(stamp.get("spec"), dict):
        raise StoreError(
            f"collection {name!r} was not made by gircse, so the model of its vectors is unknown; use another "
            "collection name"
        )
    try:
        return info, EmbeddingSpec.from_dict(stamp["spec"]), stamp.get("fingerprint")
    except InputError as error:
        raise StoreError(f"the spec of collection {name!r} cannot be read: {error}") from error


def stores_exactly(info: models.CollectionInfo) -> bool:
    """Whether the collection returns dense vectors bit for bit: not if it stores them in less than 32 bits."""
    vectors = info.config.params.vectors
    params = vectors.get(VECTOR) if isinstance(vectors, dict) else None
    return params is not None and params.datatype in (None, models.Datatype.FLOAT32)
