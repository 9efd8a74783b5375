"""Check what a collection holds against the checksums that were stored with it: `verify`.

    each point      id, record, text, metadata and vector      against the record's checksums
                    lexical vector                             against its text, encoded again
    each document   positions 0 .. chunks-1, of one version     against its other points

The collection is read once, in pages. What is known about documents is in a temporary file, not in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qdrant_client import QdrantClient, models

from gircse_rag.lexical import Bm25Encoder
from gircse_rag.qdrant.checksums import fingerprint, hash_vector, matches_content
from gircse_rag.qdrant.damage import Damage, VerifyReport
from gircse_rag.qdrant.lexical import LEXICAL, encoder_of
from gircse_rag.qdrant.local import find_file_damage
from gircse_rag.qdrant.points import Points, Record, covered_fields, is_intact, point_id, read_pages, read_record
from gircse_rag.qdrant.record_table import RecordTable
from gircse_rag.qdrant.retry import Retry
from gircse_rag.qdrant.schema import RECORD, VECTOR, read_stamp, stores_exactly
from gircse_rag.qdrant.stores import store_errors, store_name

_PAGE = 256
_NOT_UNIT = 1e-3
"""Largest deviation of a squared length from 1, for vectors without a checksum."""
_ROUNDING = 1e-6
"""Largest relative error of a weight, which a store keeps in 32 bits."""
_MAX_LISTED = 5


def verify(
    collection: str,
    client: QdrantClient,
    *,
    repair: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> VerifyReport:
    """Read every point of a collection once and find what is not as it was written. Needs no model.

    A document whose points are all gone leaves no trace here: `ingest` finds and adds it. Do not verify while something
    writes to the collection: a document that is being replaced looks damaged.

    Args:
        collection: its name, or an alias.
        repair: mark what differs, so that the next `ingest` of these documents embeds and writes it again. Points that
            cannot be assigned to a document are deleted. Everything else stays as it is, and can be searched meanwhile.
        progress: called after every page with the number of points read and the total.

    Raises:
        InputError: no collection can have this name.
        StoreError: the collection does not exist or was not made by gircse, the store cannot be read, or its spec is
            damaged.
    """
    retry = Retry(store_name(client))
    with store_errors(client):
        info, spec, stamped = retry(read_stamp, client, collection)
        encoder = encoder_of(collection, info.config, (info.config.metadata or {})[RECORD])
        report = VerifyReport(vectors_checked=stores_exactly(info))
        if stamped != spec.fingerprint:
            reason = f"its spec has the fingerprint {spec.fingerprint}, not {stamped} as recorded"
            report.damaged.append(Damage(None, None, None, f"collection {collection!r}: {reason}"))
        report.damaged += [Damage(None, None, None, problem) for problem in find_file_damage(client, collection)]
        with closing(RecordTable()) as documents:
            check = _Check(report, documents, encoder)
            vectors = [VECTOR] if encoder is None else [VECTOR, LEXICAL]
            for page in _read(retry, client, collection, vectors, report, progress):
                check.add(page)
            check.finish()
            if repair:
                report.repaired = check.repair(client, collection, retry)
    return report


def _read(
    retry: Retry,
    client: QdrantClient,
    collection: str,
    vectors: list[str],
    report: VerifyReport,
    progress: Callable[[int, int], None] | None,
) -> Iterator[list[models.Record]]:
    total, done = retry(client.count, collection).count, 0
    for page in read_pages(retry, client, collection, _PAGE, with_payload=True, with_vectors=vectors):
        yield page
        done += len(page)
        if progress is not None:
            progress(min(done, total), total)
    if done != total:
        reason = f"the collection counts {total} points, but {done} can be read"
        report.damaged.append(Damage(None, None, None, reason))


class _Check:
    """The state of one pass: compares points, and remembers how to repair what differs."""

    def __init__(self, report: VerifyReport, documents: RecordTable, encoder: Bm25Encoder | None) -> None:
        self._report = report
        self._encoder = encoder
        self._documents = documents
        self._repairs: dict[str, _Repair] = {}  # by point id

    def add(self, page: Iterable[models.Record]) -> None:
        """Compare the points of a page with their own checksums."""
        rows = []
        for point in page:
            payload, key = point.payload or {}, str(point.id)
            record, place = read_record(payload), _find_place(key, payload)
            if record is None and RECORD not in payload and place is None:
                self._report.foreign += 1
                continue
            self._report.points += 1
            reason, trusted = self._find_difference(key, record, payload, point.vector)
            if reason is None and record is not None:
                rows.append(record)
                continue
            mark = None
            if place is not None:
                mark = replace(record, **_MARK) if trusted and record is not None else _new_mark(*place)
                rows.append(mark)
            self._repairs[key] = _Repair(payload.get(RECORD), mark)
            document, number = place or (None, None)
            self._report.damaged.append(Damage(document, key, number, str(reason)))
        self._documents.add(rows)

    def _find_difference(
        self, key: str, record: Record | None, payload: dict[str, Any], vectors: Any
    ) -> tuple[str | None, bool]:
        """What of a point differs, or None; and whether its record can be trusted."""
        if record is None:
            return "its record cannot be read", False
        old = record.content is None and record.vector is None and "check" not in payload[RECORD]
        if not old and not is_intact(record, payload):
            return "its record differs", False
        if not _is_place(key, record.document, record.number):
            return f"it is stored under another id than that of chunk {record.number} of {record.document!r}", False
        self._report.unchecked += old
        text = payload.get("page_content")
        if not isinstance(text, str) or not _is_unicode(text) or fingerprint(text) != record.text:
            return "its text differs", True
        if record.content is not None and not matches_content(covered_fields(payload), record.content):
            return "its metadata differs", True
        values = vectors.get(VECTOR) if isinstance(vectors, dict) else None
        if values is None:
            return "it has no vector", True
        reason = self._find_vector_difference(record, np.asarray(values, dtype=np.float32))
        if reason is None and self._encoder is not None and not _is_lexical(vectors.get(LEXICAL), self._encoder, text):
            reason = "its lexical vector differs"
        return reason, True

    def _find_vector_difference(self, record: Record, vector: NDArray[np.float32]) -> str | None:
        if not self._report.vectors_checked:
            return None
        if record.vector is not None:
            return None if hash_vector(vector) == record.vector else "its vector differs"
        exact = vector.astype(np.float64)
        return None if abs(exact @ exact - 1) <= _NOT_UNIT else "its vector does not have the length 1"

    def finish(self) -> None:
        """Compare the points of each document with each other."""
        self._report.documents = self._documents.count_documents()
        reported = {damage.document for damage in self._report.damaged}
        for document, records in self._documents.incomplete_documents():
            numbers = {record.number for record in records}
            missing = [each for each in range(max(record.chunks for record in records)) if each not in numbers]
            if missing:
                self._report.damaged.append(Damage(document, None, None, _describe_missing(missing)))
            elif document not in reported:
                reason = "an ingest of it was interrupted: it holds points of two versions, or staged ones"
                self._report.damaged.append(Damage(document, None, None, reason))
            self._plan_reach(document, records)

    def _plan_reach(self, document: str, records: list[Record]) -> None:
        """Let the next ingest find all points of an incomplete document, or delete those that it could not find."""
        end = max(record.number for record in records) + 1
        head = records[0] if records[0].number == 0 else None
        for record in records:
            key = point_id(document, record.number)
            seen = self._repairs[key].seen if key in self._repairs else record
            if head is None:
                self._repairs[key] = _Repair(seen, None, without_head=point_id(document, 0))
            elif record is head and end > max(head.reach, head.chunks):
                self._repairs[key] = _Repair(seen, replace(head, reach=end))

    def repair(self, client: QdrantClient, collection: str, retry: Retry) -> int:
        """Mark or delete what differs, unless it has changed meanwhile. Returns the number of points."""
        points, repaired = Points(client, collection, retry), 0
        for key, repair in self._repairs.items():
            keys = [key] if repair.without_head is None else [key, repair.without_head]
            found = {str(each.id): each.payload or {} for each in retry(client.retrieve, collection, keys, [RECORD])}
            if key not in found or len(found) == 2 or not repair.still_applies(found[key]):
                continue
            if repair.mark is None:
                retry(client.delete, collection, models.PointIdsList(points=[key]), wait=True)
            else:
                points.set_record(repair.mark)
            repaired += 1
        return repaired


def _is_lexical(vector: Any, encoder: Bm25Encoder, text: str) -> bool:
    """Whether a sparse vector, or None, is that of the text, in the 32 bits that a store keeps."""
    expected = encoder.encode_document(text)
    found = {} if vector is None else dict(zip(vector.indices, vector.values, strict=False))
    return found.keys() == expected.keys() and all(
        abs(found[term] - weight) <= _ROUNDING * weight for term, weight in expected.items()
    )


@dataclass(frozen=True)
class _Repair:
    """How to repair a point.

    Attributes:
        seen: the point's record as it was read, or, if damaged, the JSON value in its place. If it is another now, the
            point is left alone.
        mark: the record to set, or None to delete the point.
        without_head: id of a point; if it exists by now, the point is left alone.
    """

    seen: Any
    mark: Record | None
    without_head: str | None = None

    def still_applies(self, payload: dict[str, Any]) -> bool:
        """Whether the point is as it was when it was compared."""
        return bool(self.seen == (read_record(payload) if isinstance(self.seen, Record) else payload.get(RECORD)))


_MARK: dict[str, Any] = {"version": "", "text": "", "content": None, "vector": None}
"""Fields of a record that no version of a document has, so the next ingest writes the point again."""


def _new_mark(document: str, number: int) -> Record:
    """A marked record in place of one that is damaged."""
    return Record(document, number=number, chunks=number + 1, reach=0 if number else 1, **_MARK)


def _find_place(key: str, payload: dict[str, Any]) -> tuple[str, int] | None:
    """The document and position of a point, as its record or the rest of its payload says and its id confirms."""
    record, metadata = payload.get(RECORD), payload.get("metadata")
    chunk = metadata.get("_chunk") if isinstance(metadata, dict) else None
    candidates: list[tuple[Any, Any]] = []
    if isinstance(record, dict):
        candidates.append((record.get("document"), record.get("number")))
    if isinstance(chunk, dict):
        candidates.append((payload.get("doc_id"), chunk.get("number")))
    for document, number in candidates:
        if _is_place(key, document, number):
            return document, number
    return None


def _is_place(key: str, document: Any, number: Any) -> bool:
    """Whether `key` is the id of this position of this document; a damaged record may hold anything."""
    return (
        isinstance(document, str)
        and _is_unicode(document)
        and isinstance(number, int)
        and number >= 0
        and key == point_id(document, number)
    )


def _is_unicode(text: str) -> bool:
    """Whether a text has no lone surrogates, which a flipped bit of a pickle can give."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _describe_missing(numbers: list[int]) -> str:
    listed = ", ".join(map(str, numbers[:_MAX_LISTED])) + (", ..." if len(numbers) > _MAX_LISTED else "")
    return f"chunk {listed} is missing" if len(numbers) == 1 else f"{len(numbers)} chunks are missing ({listed})"
