"""Delete the documents that a source no longer has: `sync_source`.

Every document is recorded with the source that brought it last. After a complete run of a source, its documents that
the run did not bring are gone. If the run cannot be trusted to be complete, nothing is deleted.
"""

from __future__ import annotations

from pathlib import Path

from gircse_rag.documents.document import SkippedFile
from gircse_rag.documents.readers import SUFFIXES
from gircse_rag.errors import InputError, plural
from gircse_rag.qdrant.ingestion.deletion import delete_document
from gircse_rag.qdrant.ingestion.report import IngestReport
from gircse_rag.qdrant.ingestion.seen import Seen
from gircse_rag.qdrant.points import Points

DRY_RUN = "this was a dry run"
"""`IngestReport.kept_because` of a dry run that found no other reason to delete nothing."""


def check_source(source: str | None, sync: object) -> None:
    """Check that `sync` comes with a source name.

    Raises:
        InputError: `sync` is set and `source` is missing or empty.
    """
    if sync and not source:
        raise InputError("sync needs a `source` name, the same in every run: it deletes what that source no longer has")


def is_read_error(skipped: SkippedFile) -> bool:
    """Whether a skipped file should have been readable. A picture among the texts is skipped without being an error."""
    path = Path(skipped.path)
    return path.suffix.lower() in SUFFIXES or not path.is_file()


def sync_source(points: Points, source: str, seen: Seen, report: IngestReport, *, delete: bool) -> None:
    """Find the documents of `source` that this run has not seen, and delete them if `delete`.

    Sets `gone`, `removed` and `kept_because` of the report.
    """
    gone = [head for head in points.first_records(source) if head.document not in seen]
    report.gone = [head.document for head in gone]
    if not report.documents:
        report.kept_because = "the source had no documents; check that it is the right one"
    elif unread := [skipped for skipped in report.skipped if is_read_error(skipped)]:
        report.kept_because = f"{plural(len(unread), 'file')} could not be read, such as {unread[0]}"
    elif not delete:
        report.kept_because = DRY_RUN
    else:
        for head in gone:
            report.deleted += delete_document(points, head)
            report.removed += 1
