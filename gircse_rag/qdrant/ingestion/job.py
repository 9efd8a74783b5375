"""A document on its way into the collection: `Job`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qdrant_client import models

from gircse_rag.documents.chunking import Chunk
from gircse_rag.lexical import Bm25Encoder
from gircse_rag.qdrant.checksums import hash_content, hash_vector, unit_vector
from gircse_rag.qdrant.points import Record, covered_fields, make_payload, make_vectors, point_id
from gircse_rag.qdrant.schema import RECORD


@dataclass(eq=False)
class Job:
    """One new or changed document, from lookup to write.

    A chunk has a number in the new version. A point has a position in the collection. Chunk n ends up at position n; a
    vector that is embedded early waits at position `staging_start + n`.

    Attributes:
        document: document id.
        metadata: the document's metadata, as JSON values.
        version: hash of the document's text, metadata and chunking.
        source: name of the source that is recorded for the document, or None.
        head: record of chunk 0 in the collection before this run, or None for a new document.
        chunks: the chunks of the new version.
        hashes: per chunk, the hash of its text.
        vectors: per chunk, (d,) float32. None until it is embedded, and again once it is written and out of memory.
        missing: number of chunks that still have to be embedded.
        reused: number of chunks that keep a vector from the collection because their text is unchanged.
        records: position to record, for every point that the collection is known to hold.
        vector_at: chunk number to position, for chunks whose vector is in the collection.
        written: positions written by this run; a rollback deletes or restores these.
        stored_end: the collection may hold points at positions below this one; 0 for a new document.
        staging_start: first position of the staging area, where vectors wait until the document is complete.
        failed: if True, nothing more of the document may be written.
    """

    document: str
    metadata: dict[str, Any]
    version: str
    source: str | None
    head: Record | None = None
    chunks: list[Chunk] = field(default_factory=list)
    hashes: list[str] = field(default_factory=list)
    vectors: list[NDArray[np.float32] | None] = field(default_factory=list)
    missing: int = 0
    reused: int = 0
    records: dict[int, Record] = field(default_factory=dict)
    vector_at: dict[int, int] = field(default_factory=dict)
    written: list[int] = field(default_factory=list)
    stored_end: int = 0
    staging_start: int = 0
    failed: bool = False

    def set_vector(self, number: int, vector: NDArray[np.float32]) -> None:
        """Set the vector, (d,) float32, of chunk `number`, which was missing."""
        self.vectors[number] = unit_vector(vector)
        self.missing -= 1

    def record(self, number: int, position: int) -> Record:
        """Make the record of chunk `number` for a point at `position`, without checksums (see `point`)."""
        count = len(self.chunks)
        reach, source = (0, None) if position else (max(self.stored_end, count), self.source)
        return Record(self.document, self.version, self.hashes[number], position, count, reach, source)

    def point(self, number: int, record: Record, lexical: Bm25Encoder | None) -> tuple[models.PointStruct, Record]:
        """Make the point of chunk `number`, which must have a vector, at the position in `record`.

        Returns the point and its record, which is `record` with checksums.
        """
        vector = self.vectors[number]
        assert vector is not None
        chunk = self.chunks[number]
        payload = make_payload(record, chunk, self.metadata)
        content = hash_content(covered_fields(payload))
        record = replace(record, content=content, vector=hash_vector(vector))
        payload[RECORD] = record.to_payload()
        point = models.PointStruct(
            id=point_id(self.document, record.number),
            vector=make_vectors(vector.tolist(), chunk.text, lexical),
            payload=payload,
        )
        return point, record
