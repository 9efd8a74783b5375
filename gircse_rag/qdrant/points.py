"""The points of a document: what one holds, its id, and reading and writing them.

    id        uuid5 of document id and chunk number
    vector    {"gircse": [d floats, unit length]}
    payload   page_content, metadata                                         LangChain reads these
              _node_content, _node_type, doc_id, document_id, ref_doc_id     LlamaIndex reads these
              gircse                                                         `Record`: what a later ingest reads

There is no other record of what was ingested: the collection is the truth.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from qdrant_client import QdrantClient, models

from gircse_rag.errors import StoreError
from gircse_rag.qdrant.chunking import Chunk
from gircse_rag.qdrant.schema import RECORD, VECTOR

_NAMESPACE = uuid.UUID("6d0f1b0e-5f0c-5a3b-9f5e-7a1d2c6b9e11")
_POINTS_PER_REQUEST = 128


@dataclass(frozen=True)
class Record:
    """What a point remembers, so that a later ingest knows what is already there.

    Attributes:
        document: the document's id.
        version: hash of the document's text and metadata and of how it was cut; equal means nothing to do.
        text: hash of this chunk's text; equal means that its vector can be kept.
        number, chunks: this chunk's position, and how many the document has.
        reach: on chunk 0 only, else 0: points of this document may exist up to this number (exclusive). More than
            `chunks` while chunks of an older, longer version wait for their deletion.
    """

    document: str
    version: str
    text: str
    number: int
    chunks: int
    reach: int


def point_id(document: str, number: int) -> str:
    """The id of a chunk's point: a uuid5, the same in every run and every collection."""
    return str(uuid.uuid5(_NAMESPACE, f"{number}:{document}"))


def read_record(payload: dict[str, Any] | None) -> Record | None:
    """The record of a point, or None if the point is not one of ours."""
    try:
        return Record(**(payload or {})[RECORD])
    except (KeyError, TypeError):
        return None


def make_payload(record: Record, chunk: Chunk, metadata: dict[str, Any]) -> dict[str, Any]:
    """The payload of a point. `metadata` is the document's, JSON values only.

    A hit's metadata is the document's, `source` (the document's id, unless the document brings its own), and `_chunk`:
    number, chunks, start and end (characters of the document), headings.
    """
    place = {
        "number": chunk.number,
        "chunks": record.chunks,
        "start": chunk.start,
        "end": chunk.end,
        "headings": list(chunk.headings),
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
    return {
        "page_content": chunk.text,
        "metadata": metadata,
        "_node_content": json.dumps(node, ensure_ascii=False),
        "_node_type": "TextNode",
        "doc_id": record.document,
        "document_id": record.document,
        "ref_doc_id": record.document,
        RECORD: asdict(record),
    }


class Points:
    """The points of one collection. Every write is acknowledged before a method returns.

    Raises (all methods):
        StoreError: the store accepted a write and did not confirm it.
    """

    def __init__(self, client: QdrantClient, collection: str) -> None:
        self._client = client
        self._collection = collection

    def read(self, ids: Iterable[str], *, vectors: bool = False) -> dict[str, tuple[Record, list[float]]]:
        """The points of ours among `ids`: id -> (record, vector, or [] if vectors are not asked for)."""
        found: dict[str, tuple[Record, list[float]]] = {}
        for part in _parts(list(ids)):
            for point in self._client.retrieve(
                self._collection, part, with_payload=[RECORD], with_vectors=[VECTOR] if vectors else False
            ):
                if (record := read_record(point.payload)) is not None:
                    vector: Any = point.vector[VECTOR] if isinstance(point.vector, dict) else []
                    found[str(point.id)] = (record, vector)
        return found

    def write(self, points: Sequence[models.PointStruct]) -> None:
        """Put points, over what has their ids."""
        for part in _parts(points):
            _confirm(self._client.upsert(self._collection, part, wait=True))

    def delete(self, ids: Iterable[str]) -> int:
        """Delete points; how many of them there were."""
        there = list(self.read(ids))
        for part in _parts(there):
            _confirm(self._client.delete(self._collection, models.PointIdsList(points=part), wait=True))
        return len(there)


def _parts(items: Sequence[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(items), _POINTS_PER_REQUEST):
        yield list(items[start : start + _POINTS_PER_REQUEST])


def _confirm(result: models.UpdateResult) -> None:
    if result.status != models.UpdateStatus.COMPLETED:
        raise StoreError(f"Qdrant accepted a write and did not confirm it ({result.status.value}); run again")
