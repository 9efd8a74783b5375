"""`sync` deletes documents that a source no longer has, if the source was read completely."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from qdrant_client import QdrantClient

from gircse_rag.errors import GircseError, InputError, SpecMismatchError
from gircse_rag.qdrant import Document, IngestReport, SkippedFile, ingest
from gircse_rag.qdrant.points import read_record
from tests.stand_in import POISON, StandIn

LONG = "\n\n".join(f"Paragraph {number} of a document that has several chunks." for number in range(9))


@pytest.fixture
def client() -> QdrantClient:
    return QdrantClient(":memory:")


def _ingest(client: QdrantClient, *documents: Document | SkippedFile, **options: Any) -> IngestReport:
    options = {"source": "here", **options}
    return ingest(documents, collection="docs", embedder=StandIn(), client=client, **options)


def _documents(client: QdrantClient) -> set[str]:
    points, _ = client.scroll("docs", limit=10_000)
    records = [read_record(point.payload) for point in points]
    return {record.document for record in records if record is not None}


def _points(client: QdrantClient) -> list[Any]:
    points, _ = client.scroll("docs", limit=10_000, with_vectors=True)
    return [(point.id, point.payload, point.vector) for point in points]


def test_gone_documents_are_deleted_completely_and_the_rest_stays(client: QdrantClient) -> None:
    _ingest(client, Document("a", "one"), Document("b", LONG), Document("c", "three"))
    report = _ingest(client, Document("a", "one"), Document("c", "changed"), sync=True)
    assert (report.gone, report.removed, report.kept_because) == (["b"], 1, None)
    assert report.deleted > 5 and report.unchanged == report.updated == 1
    assert _documents(client) == {"a", "c"}


def test_without_sync_nothing_is_deleted(client: QdrantClient) -> None:
    _ingest(client, Document("a", "one"), Document("b", LONG))
    assert _ingest(client, Document("a", "one")).gone == []
    assert _documents(client) == {"a", "b"}


def test_a_dry_run_lists_every_change_and_neither_embeds_nor_writes(client: QdrantClient) -> None:
    _ingest(client, Document("a", "one"), Document("b", LONG), Document("c", "three"))
    _ingest(client, Document("d", "of another source"), source="there")
    before = _points(client)
    embedder = StandIn()
    now = [Document("a", "one"), Document("b", LONG + "\n\nOne more."), Document("e", LONG), Document("bad", " ")]
    now.append(Document("d", "of another source"))  # unchanged: a run would only claim it
    options: dict[str, Any] = {"collection": "docs", "client": client, "source": "here"}
    plan = ingest(now, embedder=embedder, sync="dry-run", **options)
    assert (plan.to_add, plan.to_update, plan.gone) == (["e"], ["b"], ["c"])
    assert (plan.added, plan.updated, plan.unchanged, plan.removed, plan.deleted, plan.embedded) == (0, 0, 2, 0, 0, 0)
    assert [failure.id for failure in plan.failed] == ["bad"] and plan.documents == 5
    assert "dry run" in str(plan.kept_because)
    assert embedder.embedded == []
    assert _points(client) == before

    done = ingest(now, embedder=embedder, sync=True, **options)
    assert (done.added, done.updated, done.removed) == (1, 1, 1) and done.embedded == plan.to_embed > 0


def test_a_dry_run_into_a_missing_collection_does_not_create_it(client: QdrantClient) -> None:
    plan = _ingest(client, Document("a", "one"), sync="dry-run")
    assert (plan.to_add, plan.gone, plan.to_embed) == (["a"], [], 1)
    assert not client.collection_exists("docs")


def test_a_dry_run_checks_the_collection(client: QdrantClient) -> None:
    _ingest(client, Document("a", "one"))
    with pytest.raises(SpecMismatchError):
        ingest([], collection="docs", embedder=StandIn(24), client=client, source="here", sync="dry-run")
    with pytest.raises(InputError, match="cannot be called"):
        ingest([], collection="a/b", embedder=StandIn(), client=client, source="here", sync="dry-run")


def test_documents_of_another_source_or_of_none_stay(client: QdrantClient) -> None:
    _ingest(client, Document("a", "one"))
    _ingest(client, Document("b", "two"), source="there")
    _ingest(client, Document("c", "three"), source=None)
    assert _ingest(client, Document("d", "four"), sync=True).gone == ["a"]
    assert _documents(client) == {"b", "c", "d"}


def test_the_last_source_to_ingest_a_document_owns_it(client: QdrantClient) -> None:
    _ingest(client, Document("a", "one"), Document("b", "two"), source=None)
    _ingest(client, Document("a", "one"))  # unchanged: claimed without embedding
    _ingest(client, Document("b", "two"), source="there")
    _ingest(client, Document("b", "new text"), source=None)  # an ingest without a source name changes no owner
    assert _ingest(client, Document("d", "four"), sync=True).gone == ["a"]
    assert _ingest(client, Document("e", "five"), source="there", sync=True).gone == ["b"]
    assert _documents(client) == {"d", "e"}


def test_a_document_that_fails_is_not_gone(client: QdrantClient) -> None:
    _ingest(client, Document("poison", "one"), Document("control", "two"), Document("json", "three"))
    now = [Document("poison", POISON), Document("control", "\x07"), Document("json", "x", {"y": object()})]
    report = _ingest(client, *now, sync=True)
    assert len(report.failed) == 3 and (report.gone, report.removed) == ([], 0)
    assert _documents(client) == {"poison", "control", "json"}


@pytest.mark.parametrize(
    ("now", "reason"),
    [
        ([], "the source had no documents"),
        (
            [Document("a", "one"), SkippedFile("folder/b.txt", "cannot be read")],
            "could not be read, such as folder/b.txt",
        ),
    ],
)
def test_nothing_is_deleted_unless_the_source_was_read_completely(
    client: QdrantClient, now: list[Document | SkippedFile], reason: str
) -> None:
    _ingest(client, Document("a", "one"), Document("b", "two"))
    report = _ingest(client, *now, sync=True)
    assert reason in str(report.kept_because) and report.removed == 0
    assert "b" in report.gone and _documents(client) == {"a", "b"}


def test_an_unsupported_file_does_not_prevent_deletion(client: QdrantClient, tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    _ingest(client, Document("a", "one"), Document("b", "two"))
    picture = SkippedFile(str(tmp_path / "picture.png"), "no reader for .png")
    assert _ingest(client, Document("a", "one"), picture, sync=True).removed == 1


def test_a_failed_run_deletes_nothing(client: QdrantClient) -> None:
    _ingest(client, Document("a", "one"), Document("b", "two"))

    def broken() -> Iterator[Document]:
        yield Document("a", "one")
        raise GircseError("the share is gone")

    with pytest.raises(GircseError, match="share"):
        ingest(broken(), collection="docs", embedder=StandIn(), client=client, source="here", sync=True)
    assert _documents(client) == {"a", "b"}


def test_an_interrupted_deletion_is_finished_by_the_next_run(
    client: QdrantClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    _ingest(client, Document("a", "one"), Document("b", LONG))
    delete, calls = client.delete, iter([True, False])

    def cut_short(*args: Any, **options: Any) -> Any:
        if not next(calls):
            raise KeyboardInterrupt
        return delete(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(client, "delete", cut_short)
        with pytest.raises(KeyboardInterrupt):
            _ingest(client, Document("a", "one"), sync=True)
    assert _documents(client) == {"a", "b"}
    assert _ingest(client, Document("a", "one"), sync=True).removed == 1
    assert _documents(client) == {"a"}


def test_sync_needs_a_source(client: QdrantClient) -> None:
    with pytest.raises(InputError, match="sync needs a `source` name"):
        _ingest(client, Document("a", "one"), source=None, sync=True)


def test_duplicate_texts_are_reported_and_ingested(client: QdrantClient) -> None:
    report = _ingest(
        client, Document("a", "same"), Document("b", "other"), Document("c", "same"), Document("c", "same")
    )
    assert [(found.id, found.of) for found in report.duplicates] == [("c", "a")] and report.duplicated == 1
    assert str(report.duplicates[0]) == "c: the same text as a"
    assert report.added == 3 and _documents(client) == {"a", "b", "c"}
    again = _ingest(client, *[Document(str(number), "same") for number in range(1500)])
    assert again.duplicated == 1499 and len(again.duplicates) == 1000
