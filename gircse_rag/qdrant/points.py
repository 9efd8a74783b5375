"""The points of a document: their layout, ids, reading and writing.

    id        uuid5 of document id and position
    vector    {"gircse": [d floats, unit length], "bm25": {term id: weight}}
    payload   page_content, metadata    read by LangChain, and by the stores of our integrations
              doc_id                    the document's id, by which LlamaIndex deletes
              gircse                    `Record`, read by later ingests

The collection is the only record of what was ingested. A document has points at positions 0 .. chunks-1, one per chunk.
While it is being replaced, further positions up to reach-1 hold points of the old version and staged vectors.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, ParamSpec, TypeVar

import grpc
import numpy as np
from numpy.typing import NDArray
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import UnexpectedResponse

from gircse_rag.documents.chunking import Chunk
from gircse_rag.errors import StoreError
from gircse_rag.lexical import Bm25Encoder
from gircse_rag.qdrant.checksums import hash_record
from gircse_rag.qdrant.lexical import LEXICAL, to_sparse
from gircse_rag.qdrant.retry import Retry, answer_text
from gircse_rag.qdrant.schema import RECORD, VECTOR, stores_exactly

_NAMESPACE = uuid.UUID("6d0f1b0e-5f0c-5a3b-9f5e-7a1d2c6b9e11")
_POINTS_PER_REQUEST = 128
_POINTS_PER_PAGE = 1000
_CHARACTERS_PER_REQUEST = 4_000_000  # of payload; a server takes 32 MiB, and a character takes up to 4 bytes
_REFUSED = (400, 413, 422)
_COVERED = ("page_content", "metadata", "doc_id", "_node_content", "_node_type", "document_id", "ref_doc_id")
"""Payload fields with a checksum. Earlier versions also wrote the last four, which repeat the first three."""

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Record:
    """Bookkeeping stored in a point, from which a later ingest decides what has changed.

    Attributes:
        document: the document's id.
        version: hash of the document's text, metadata and chunking; if equal, the document is unchanged.
        text: hash of this chunk's text; if equal, the vector can be reused.
        number: this point's position. From `chunks` on, the point is a staged vector, not a chunk.
        chunks: number of chunks of the document.
        reach: points of this document may exist at positions 0 .. reach-1. Stored on chunk 0 only, 0 elsewhere. Larger
            than `chunks` while the document is being replaced, until the left-over points are deleted.
        source: the source that last ingested the document; `--sync` of that source may delete it. Stored on chunk 0
            only; None if the source has no name.
        content, vector: checksums of the point's payload and vector; None if an earlier version wrote the point. The
            stored record also has `check`, the checksum of these fields (see `checksums`).
    """

    document: str
    version: str
    text: str
    number: int
    chunks: int
    reach: int
    source: str | None = None
    content: str | None = field(default=None, compare=False)
    vector: str | None = field(default=None, compare=False)

    def to_payload(self) -> dict[str, Any]:
        """The record as it is stored."""
        fields = dict(vars(self))
        return {**fields, "check": hash_record(fields)}


@dataclass(frozen=True)
class Stored:
    """A point written by `ingest`, as read from the collection.

    Attributes:
        vector: (d,) float32; empty if vectors were not requested.
    """

    record: Record
    vector: NDArray[np.float32]


class RefusedError(StoreError):
    """The store rejects a point. Retrying does not help; leaving the point out does."""


@lru_cache(maxsize=4096)  # an ingest needs each id three times, some batches apart
def point_id(document: str, number: int) -> str:
    """The id of the point at position `number` of a document: a uuid5, the same in every run and collection."""
    name = hashlib.sha1(_NAMESPACE.bytes + f"{number}:{document}".encode(), usedforsecurity=False)
    return str(uuid.UUID(bytes=name.digest()[:16], version=5))  # equals uuid.uuid5, which takes twice as long


def read_record(payload: dict[str, Any] | None) -> Record | None:
    """The record in a point's payload, or None if `ingest` did not write the point."""
    try:
        return Record(**{name: value for name, value in (payload or {})[RECORD].items() if name != "check"})
    except (AttributeError, KeyError, TypeError):
        return None


def is_intact(record: Record, payload: dict[str, Any] | None) -> bool:
    """Whether the record, as read from the payload, has the checksum that was stored with it."""
    return bool(hash_record(vars(record)) == (payload or {})[RECORD].get("check"))


def make_payload(record: Record, chunk: Chunk, metadata: dict[str, Any]) -> dict[str, Any]:
    """Build the payload of a chunk's point, without its record. `metadata` is the document's, JSON values only.

    The stored metadata adds `source` (the document's id, unless the document sets it) and `_chunk`: number, chunks,
    start and end (character offsets in the document), headings, and the page if the document has pages.
    """
    place = {
        "number": chunk.number,
        "chunks": record.chunks,
        "start": chunk.start,
        "end": chunk.end,
        "headings": list(chunk.headings),
        **({} if chunk.page is None else {"page": chunk.page}),
    }
    metadata = {"source": record.document, **metadata, "_chunk": place}
    return shared_payload(record.document, chunk.text, metadata)


def shared_payload(document: str, text: str, metadata: dict[str, Any]) -> dict[str, Any]:
    """The payload fields of every writer's points. Text and metadata are stored once."""
    return {"page_content": text, "metadata": metadata, "doc_id": document}


def covered_fields(payload: dict[str, Any]) -> dict[str, Any]:
    """The fields of a payload that `Record.content` covers."""
    return {name: payload[name] for name in _COVERED if name in payload}


def make_vectors(vector: Sequence[float], text: str, encoder: Bm25Encoder | None) -> dict[str, Any]:
    """Build the named vectors of a point: `vector` (d,), and the lexical vector of its text."""
    vectors: dict[str, Any] = {VECTOR: list(vector)}
    if encoder is not None and (weights := encoder.encode_document(text)):
        vectors[LEXICAL] = to_sparse(weights)
    return vectors


def collection_gone(collection: str) -> StoreError:
    """The error for a collection that disappeared during an operation."""
    return StoreError(
        f"collection {collection!r} is gone: another client deleted it during this run; run again to rebuild it"
    )


def read_pages(
    ask: Callable[..., Any], client: QdrantClient, collection: str, limit: int, **options: Any
) -> Iterator[list[models.Record]]:
    """Yield the points of a collection in pages of at most `limit`. `options` are those of `client.scroll`."""
    offset: Any = None
    while True:
        page, offset = ask(client.scroll, collection, limit=limit, offset=offset, **options)
        if page:
            yield page
        if offset is None:
            return


class Points:
    """Reads and writes the points of one collection. Every write is acknowledged before its method returns.

    Raises (all methods):
        StoreError: the store fails, or the collection is gone.
    """

    def __init__(self, client: QdrantClient, collection: str, ask: Retry) -> None:
        self._client = client
        self._collection = collection
        self._ask = ask

    def read(self, ids: Iterable[str], *, vectors: bool = False) -> dict[str, Stored]:
        """Read those points among `ids` that `ingest` wrote, by id."""
        points_by_id: dict[str, Stored] = {}
        for point, record in self._retrieve(ids, [RECORD], [VECTOR] if vectors else False):
            vector: Any = point.vector[VECTOR] if isinstance(point.vector, dict) else []
            points_by_id[str(point.id)] = Stored(record, np.asarray(vector, dtype=np.float32))
        return points_by_id

    def read_whole(self, ids: Iterable[str]) -> dict[str, models.PointStruct]:
        """Read those points among `ids` that `ingest` wrote, by id, complete: `write` restores them exactly."""
        points_by_id: dict[str, models.PointStruct] = {}
        for point, _ in self._retrieve(ids, True, True):
            vector: Any = point.vector
            points_by_id[str(point.id)] = models.PointStruct(id=point.id, vector=vector, payload=point.payload)
        return points_by_id

    def _retrieve(self, ids: Iterable[str], payload: Any, vectors: Any) -> Iterator[tuple[models.Record, Record]]:
        """Read those points among `ids` that `ingest` wrote, with their records."""
        for part in _parts(list(ids)):
            for point in self._call(self._client.retrieve, self._collection, part, payload, vectors):
                if (record := read_record(point.payload)) is not None:
                    yield point, record

    @cached_property
    def stores_vectors_exactly(self) -> bool:
        """Whether vectors are read back bit for bit: False if the collection stores them in less than 32 bits."""
        return stores_exactly(self._call(self._client.get_collection, self._collection))

    def write(self, points: Iterable[models.PointStruct]) -> None:
        """Upsert points, in requests small enough for a server. The iterable is consumed lazily.

        Raises:
            RefusedError: the store permanently rejects a point or a request. Earlier points may be written.
        """
        for part in _requests(points):
            try:
                self._call(self._client.upsert, self._collection, part, wait=True)
            except UnexpectedResponse as error:
                if error.status_code not in _REFUSED:
                    raise
                reason = f"HTTP {error.status_code}: {answer_text(error)}"
                raise RefusedError(f"the store refuses its points ({reason})") from error
            except grpc.RpcError as error:
                if not isinstance(error, grpc.Call) or error.code() is not grpc.StatusCode.INVALID_ARGUMENT:
                    raise
                raise RefusedError(f"the store refuses its points ({error.details()})") from error

    def set_record(self, record: Record) -> None:
        """Replace the record of an existing point and keep the rest of it."""
        ids: list[int | str | uuid.UUID] = [point_id(record.document, record.number)]
        self._call(self._client.set_payload, self._collection, {RECORD: record.to_payload()}, points=ids, wait=True)

    def delete(self, ids: Iterable[str]) -> list[Record]:
        """Delete those points among `ids` that `ingest` wrote; return their records."""
        existing = self.read(ids)
        for part in _parts(list(existing)):
            selected = models.PointIdsList(points=[*part])
            self._call(self._client.delete, self._collection, selected, wait=True)
        return [point.record for point in existing.values()]

    def first_records(self, source: str) -> Iterator[Record]:
        """Yield the record of chunk 0 of every document last ingested from `source`."""
        here = models.FieldCondition(key=f"{RECORD}.source", match=models.MatchValue(value=source))
        options = {"scroll_filter": models.Filter(must=[here]), "with_payload": [RECORD]}
        for page in read_pages(self._call, self._client, self._collection, _POINTS_PER_PAGE, **options):
            yield from (record for point in page if (record := read_record(point.payload)) is not None)

    def _call(self, method: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return self._ask(method, *args, **kwargs)
        except (UnexpectedResponse, ValueError, grpc.RpcError) as error:
            if not _not_found(error):
                raise
            raise collection_gone(self._collection) from error


def _not_found(error: Exception) -> bool:
    if isinstance(error, UnexpectedResponse):
        return error.status_code == 404
    if isinstance(error, grpc.Call):
        return error.code() is grpc.StatusCode.NOT_FOUND
    return isinstance(error, ValueError) and "not found" in str(error)


def _parts(items: Sequence[T]) -> Iterator[list[T]]:
    for start in range(0, len(items), _POINTS_PER_REQUEST):
        yield list(items[start : start + _POINTS_PER_REQUEST])


def _requests(points: Iterable[models.PointStruct]) -> Iterator[list[models.PointStruct]]:
    part: list[models.PointStruct] = []
    size = 0
    for point in points:
        length = _characters(point.payload or {})
        if part and (len(part) == _POINTS_PER_REQUEST or size + length > _CHARACTERS_PER_REQUEST):
            yield part
            part, size = [], 0
        part.append(point)
        size += length
    if part:
        yield part


def _characters(payload: dict[str, Any]) -> int:
    """Length of a payload as JSON."""
    return len(json.dumps(payload, ensure_ascii=False, default=str))
