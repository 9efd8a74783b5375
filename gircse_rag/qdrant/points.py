"""The points of a document: what one holds, its id, and reading and writing them.

    id        uuid5 of document id and chunk number
    vector    {"gircse": [d floats, unit length]}
    payload   page_content, metadata                                         LangChain reads these
              _node_content, _node_type, doc_id, document_id, ref_doc_id     LlamaIndex reads these
              gircse                                                         `Record`: what a later ingest reads

There is no other record of what was ingested: the collection is the truth. Points `reach` from 0 up: those of the
document's chunks, and, while it is being replaced, those of the older version and vectors that wait for their place.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ParamSpec, TypeVar

import grpc
import numpy as np
from numpy.typing import NDArray
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import UnexpectedResponse

from gircse_rag.documents.chunking import Chunk
from gircse_rag.errors import StoreError
from gircse_rag.qdrant.retry import Retry
from gircse_rag.qdrant.schema import RECORD, VECTOR

_NAMESPACE = uuid.UUID("6d0f1b0e-5f0c-5a3b-9f5e-7a1d2c6b9e11")
_POINTS_PER_REQUEST = 128
_POINTS_PER_PAGE = 1000
_CHARACTERS_PER_REQUEST = 4_000_000  # of payloads; a server takes 32 MiB, and a character may take four bytes
_REFUSED = (400, 413, 422)

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Record:
    """What a point remembers, so that a later ingest knows what is already there.

    Attributes:
        document: the document's id.
        version: hash of the document's text and metadata and of how it was cut; equal means nothing to do.
        text: hash of this chunk's text; equal means that its vector can be kept.
        number, chunks: this point's position, and how many chunks the document has. A position from `chunks` on holds
            a vector that waits for its place.
        reach: on chunk 0 only, else 0: points of this document may exist up to this number (exclusive). More than
            `chunks` while it is being replaced, and while what is left of that waits for its deletion.
        source: on chunk 0 only: what brought the document, so that `--sync` of that may delete it; None for no name.
    """

    document: str
    version: str
    text: str
    number: int
    chunks: int
    reach: int
    source: str | None = None


@dataclass(frozen=True)
class Stored:
    """A point of ours as the collection has it.

    Attributes:
        vector: (d,) float32; empty if it was not asked for.
    """

    record: Record
    vector: NDArray[np.float32]


class RefusedError(StoreError):
    """The store does not take a point as it is: trying again does not help, leaving it out does."""


@lru_cache(maxsize=4096)  # looked up, and some batches later written: an ingest asks for each three times
def point_id(document: str, number: int) -> str:
    """The id of a chunk's point: a uuid5, the same in every run and every collection."""
    name = hashlib.sha1(_NAMESPACE.bytes + f"{number}:{document}".encode(), usedforsecurity=False)
    return str(uuid.UUID(bytes=name.digest()[:16], version=5))  # uuid.uuid5, which takes twice as long


def read_record(payload: dict[str, Any] | None) -> Record | None:
    """The record of a point, or None if the point is not one of ours."""
    try:
        return Record(**(payload or {})[RECORD])
    except (KeyError, TypeError):
        return None


def make_payload(record: Record, chunk: Chunk, metadata: dict[str, Any]) -> dict[str, Any]:
    """The payload of a point. `metadata` is the document's, JSON values only.

    A hit's metadata is the document's, `source` (the document's id, unless the document brings its own), and `_chunk`:
    number, chunks, start and end (characters of the document), headings, and the page where there are pages.
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
    node = {
        "id_": point_id(record.document, chunk.number),
        "metadata": metadata,
        "excluded_embed_metadata_keys": list(metadata),
        "excluded_llm_metadata_keys": ["_chunk"],
        "relationships": {"1": {"node_id": record.document, "node_type": "4", "class_name": "RelatedNodeInfo"}},
        "text": chunk.text,
        "mimetype": "text/plain",
        "start_char_idx": chunk.start,
        "end_char_idx": chunk.end,
        "class_name": "TextNode",
    }
    return {**shared_payload(record.document, node), RECORD: dict(vars(record))}


def shared_payload(document: str, node: dict[str, Any]) -> dict[str, Any]:
    """What LangChain and LlamaIndex read of a point of `document`; `node` is LlamaIndex's TextNode, as a dictionary.

    Raises:
        TypeError, ValueError: the node holds something that JSON does not know.
    """
    return {
        "page_content": node["text"],
        "metadata": node["metadata"],
        "_node_content": json.dumps(node, ensure_ascii=False),
        "_node_type": node["class_name"],
        "doc_id": document,
        "document_id": document,
        "ref_doc_id": document,
    }


def collection_gone(collection: str) -> StoreError:
    """What to raise when a collection was there a moment ago."""
    return StoreError(
        f"collection {collection!r} is gone: something deleted it meanwhile; run again, and all of it is made anew"
    )


class Points:
    """The points of one collection. Every write is acknowledged before a method returns.

    Raises (all methods):
        StoreError: the store does not do it, or the collection is gone.
    """

    def __init__(self, client: QdrantClient, collection: str, ask: Retry) -> None:
        self._client = client
        self._collection = collection
        self._ask = ask

    def read(self, ids: Iterable[str], *, vectors: bool = False) -> dict[str, Stored]:
        """The points of ours among `ids`, by id."""
        found: dict[str, Stored] = {}
        for part in _parts(list(ids)):
            points = self._call(
                self._client.retrieve,
                self._collection,
                part,
                with_payload=[RECORD],
                with_vectors=[VECTOR] if vectors else False,
            )
            for point in points:
                if (record := read_record(point.payload)) is not None:
                    vector: Any = point.vector[VECTOR] if isinstance(point.vector, dict) else []
                    found[str(point.id)] = Stored(record, np.asarray(vector, dtype=np.float32))
        return found

    def copies(self, ids: Iterable[str]) -> dict[str, models.PointStruct]:
        """The points of ours among `ids`, by id, with all that is in them: `write` puts them back as they were."""
        found: dict[str, models.PointStruct] = {}
        for part in _parts(list(ids)):
            for point in self._call(
                self._client.retrieve, self._collection, part, with_payload=True, with_vectors=True
            ):
                if read_record(point.payload) is not None:
                    vector: Any = point.vector
                    found[str(point.id)] = models.PointStruct(id=point.id, vector=vector, payload=point.payload)
        return found

    def write(self, points: Iterable[models.PointStruct]) -> None:
        """Put points, over what has their ids, in requests that a server takes. They are taken as they are needed.

        Raises:
            RefusedError: the store does not take one of the points, or so many, however often it is asked. Those
                before it may be written.
        """
        for part in _requests(points):
            try:
                self._call(self._client.upsert, self._collection, part, wait=True)
            except UnexpectedResponse as error:
                if error.status_code not in _REFUSED:
                    raise
                said = error.content[:200].decode(errors="replace").strip() or error.reason_phrase
                raise RefusedError(f"the store refuses its points (HTTP {error.status_code}: {said})") from error
            except grpc.RpcError as error:
                if not isinstance(error, grpc.Call) or error.code() is not grpc.StatusCode.INVALID_ARGUMENT:
                    raise
                raise RefusedError(f"the store refuses its points ({error.details()})") from error

    def mark(self, record: Record) -> None:
        """Replace the record of a point that is there, and nothing else of it."""
        ids: list[int | str | uuid.UUID] = [point_id(record.document, record.number)]
        self._call(self._client.set_payload, self._collection, {RECORD: dict(vars(record))}, points=ids, wait=True)

    def delete(self, ids: Iterable[str]) -> list[Record]:
        """Delete points; the records of those that were there."""
        there = self.read(ids)
        for part in _parts(list(there)):
            selected = models.PointIdsList(points=[*part])
            self._call(self._client.delete, self._collection, selected, wait=True)
        return [point.record for point in there.values()]

    def heads(self, source: str) -> Iterator[Record]:
        """Chunk 0 of every document that `source` brought last."""
        wanted = models.Filter(
            must=[models.FieldCondition(key=f"{RECORD}.source", match=models.MatchValue(value=source))]
        )
        offset: Any = None
        while True:
            points, offset = self._call(
                self._client.scroll,
                self._collection,
                scroll_filter=wanted,
                limit=_POINTS_PER_PAGE,
                offset=offset,
                with_payload=[RECORD],
                with_vectors=False,
            )
            yield from (record for point in points if (record := read_record(point.payload)) is not None)
            if offset is None:
                return

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
    """How long a payload is, about."""
    node = payload.get("_node_content")
    if isinstance(node, str):  # text and metadata once more: measured, they would hold an ingest up
        return 2 * len(node)
    return len(json.dumps(payload, ensure_ascii=False, default=str))
