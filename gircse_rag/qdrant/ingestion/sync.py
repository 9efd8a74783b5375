"""Documents that a source no longer has: `sync`.

Every document is recorded with the source that brought it last. One that the source brought once, and did not bring in
a run that went to its end, is gone. Nothing is deleted where that cannot be known.
"""

from __future__ import annotations

from pathlib import Path

from gircse_rag.documents.document import SkippedFile
from gircse_rag.documents.readers import SUFFIXES
from gircse_rag.errors import InputError
from gircse_rag.qdrant.ingestion.report import IngestReport
from gircse_rag.qdrant.ingestion.seen import Seen
from gircse_rag.qdrant.points import Points, point_id


def check_source(source: str | None, sync: object) -> None:
    """
    Raises:
        InputError: to be synchronised, and with what has no name.
    """
    if sync and not source:
        raise InputError("sync deletes what a source no longer has: give the source a name, the same in every run")


def is_fault(skipped: SkippedFile) -> bool:
    """A picture between the texts is passed over; a text that cannot be read is a fault."""
    path = Path(skipped.path)
    return path.suffix.lower() in SUFFIXES or not path.is_file()


def sync(points: Points, source: str, seen: Seen, report: IngestReport, *, delete: bool) -> None:
    """Find the documents of `source` that were not seen, and delete them.

    Into the report go `gone`, and `removed` or `kept_because`. Chunk 0 of a document goes last: it finds the others.
    """
    gone = [head for head in points.heads(source) if head.document not in seen]
    report.gone = [head.document for head in gone]
    if not report.documents:
        report.kept_because = "the source gave no document at all: is it the right one?"
    elif faults := [skipped for skipped in report.skipped if is_fault(skipped)]:
        report.kept_because = f"{len(faults)} of its files could not be read, such as {faults[0]}"
    elif not delete:
        report.kept_because = "it was only asked what would be deleted"
    else:
        for head in gone:
            reach = max(head.reach, head.chunks)
            for numbers in (range(1, reach), range(1)):
                report.deleted += len(points.delete(point_id(head.document, number) for number in numbers))
            report.removed += 1
