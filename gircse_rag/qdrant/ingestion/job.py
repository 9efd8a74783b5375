"""A document on its way into the collection: `Job`."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qdrant_client import models

from gircse_rag.documents.chunking import Chunk
from gircse_rag.qdrant.points import Record, make_payload, point_id
from gircse_rag.qdrant.schema import VECTOR


@dataclass(eq=False)
class Job:
    """A document that is new or changed, from lookup to write.

    Attributes:
        source: what it is recorded to come from, or None.
        head: the record of its chunk 0 as the collection had it, or None: the document is new.
        vectors: of each chunk, (d,) float32; None while it waits for one, and once it is in its place.
        missing: chunks that wait for a vector.
        kept: chunks that have the vector which the collection had for their text.
        records: the records of its points in the collection, by position.
        vector_at: by chunk, the position in the collection where its vector lies; not all chunks have one.
        written: positions this run has written to before the document was complete.
        stored_end: points of it may exist up to here; 0 if it is new.
        staging_start: positions from here on are free for vectors that wait for their place.
        failed: nothing more of it may be written.
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
    kept: int = 0
    records: dict[int, Record] = field(default_factory=dict)
    vector_at: dict[int, int] = field(default_factory=dict)
    written: list[int] = field(default_factory=list)
    stored_end: int = 0
    staging_start: int = 0
    failed: bool = False

    def set_vector(self, number: int, vector: NDArray[np.float32]) -> None:
        """The vector that chunk `number` waited for."""
        self.vectors[number] = vector
        self.missing -= 1

    def record(self, number: int, place: int) -> Record:
        """What the point of chunk `number` remembers when it stands at position `place`."""
        head = place == 0
        count = len(self.chunks)
        reach = max(self.stored_end, count) if head else 0
        return Record(
            self.document, self.version, self.hashes[number], place, count, reach, self.source if head else None
        )

    def point(self, number: int, record: Record) -> models.PointStruct:
        """The point of chunk `number`, which has a vector, for the position that `record` names."""
        vector = self.vectors[number]
        assert vector is not None
        return models.PointStruct(
            id=point_id(self.document, record.number),
            vector={VECTOR: vector.tolist()},
            payload=make_payload(record, self.chunks[number], self.metadata),
        )


def fingerprint(text: str) -> str:
    """32 hex digits that stand for a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]
