from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qdrant_client import QdrantClient, models

from gircse_rag.errors import GircseWarning, InputError, StoreError
from gircse_rag.qdrant import Document, IngestReport, Progress, SkippedFile, ingest, open_client, read_documents
from gircse_rag.qdrant.foreign import make_node
from gircse_rag.qdrant.points import point_id
from tests.stand_in import POISON, StandIn

# Together several chunks of 64 bytes.
LONG = [f"This is sentence number {n} of the document, and it is not short." for n in range(8)]


def _ingest(
    client: QdrantClient, embedder: StandIn, *documents: Document | SkippedFile, **options: Any
) -> IngestReport:
    return ingest(documents, collection="docs", embedder=embedder, client=client, **options)


def _counts(report: IngestReport) -> tuple[int, int, int, int, int]:
    return report.added, report.updated, report.unchanged, report.deleted, len(report.failed)


def _state(client: QdrantClient) -> dict[str, tuple[dict[str, Any], list[float]]]:
    points, _ = client.scroll("docs", limit=100_000, with_payload=True, with_vectors=True)
    return {str(p.id): (p.payload, p.vector["gircse"]) for p in points}  # type: ignore[index,call-overload,misc]


def _texts(client: QdrantClient, document: str) -> list[str]:
    payloads = [p for p, _ in _state(client).values() if p["gircse"]["document"] == document]
    return [p["page_content"] for p in sorted(payloads, key=lambda p: p["gircse"]["number"])]


def test_a_second_run_embeds_nothing_and_changes_nothing(client: QdrantClient, embedder: StandIn) -> None:
    documents = [
        Document("short", "A short text."),
        Document("long", " ".join(LONG), {"topic": "sentences"}),
        Document("guide.md", "# One\n\nFirst.\n\n# Two\n\nSecond.", markdown=True),
    ]
    first = _ingest(client, embedder, *documents)
    assert _counts(first) == (3, 0, 0, 0, 0)
    before, embedded = _state(client), list(embedder.embedded)
    assert len(before) == len(embedded) == first.embedded > 8
    second = _ingest(client, embedder, *documents)
    assert _counts(second) == (0, 0, 3, 0, 0)
    assert second.embedded == 0 and embedder.embedded == embedded
    assert _state(client) == before


def test_a_second_run_on_a_reopened_store_embeds_nothing(tmp_path: Path, embedder: StandIn) -> None:
    for expected in [(1, 0, 0, 0, 0), (0, 0, 1, 0, 0)]:
        client = open_client(tmp_path / "store")
        assert _counts(_ingest(client, embedder, Document("long", " ".join(LONG)))) == expected
        client.close()


_DOCUMENTS = st.dictionaries(
    st.sampled_from(["a", "b", "c"]),
    st.lists(st.sampled_from([*LONG, "é 你好 👩‍👩‍👧", "x" * 200]), min_size=1, max_size=5),
    max_size=3,
)


@settings(max_examples=15, deadline=None)
@given(st.lists(_DOCUMENTS, min_size=1, max_size=4), st.integers(1, 7))
def test_a_collection_only_depends_on_the_last_version_of_each_document(
    rounds: list[dict[str, list[str]]], batch_size: int
) -> None:
    last: dict[str, list[str]] = {}
    history, fresh = QdrantClient(":memory:"), QdrantClient(":memory:")
    for versions in rounds:
        last |= versions
        documents = [Document(name, " ".join(parts)) for name, parts in versions.items()]
        assert not _ingest(history, StandIn(), *documents, batch_size=batch_size).failed
    assert not _ingest(fresh, StandIn(), *[Document(name, " ".join(parts)) for name, parts in last.items()]).failed
    reached, expected = _state(history), _state(fresh)
    assert {key: payload for key, (payload, _) in reached.items()} == {key: p for key, (p, _) in expected.items()}
    for key, (_, vector) in expected.items():
        np.testing.assert_allclose(reached[key][1], vector, atol=1e-6)


def test_a_changed_document_embeds_only_what_changed(client: QdrantClient, embedder: StandIn) -> None:
    _ingest(client, embedder, Document("doc", "\n\n".join(LONG)))
    _ingest(client, embedder, Document("other", "stays"))
    embedder.embedded.clear()
    changed = [LONG[0], "A new sentence in the second place.", *LONG[1:]]
    report = _ingest(client, embedder, Document("doc", "\n\n".join(changed)))
    assert _counts(report) == (0, 1, 0, 0, 0)
    assert report.reused >= len(LONG) - 2
    assert len(embedder.embedded) == report.embedded and "A new sentence" in " ".join(embedder.embedded)
    assert " ".join(_texts(client, "doc")).split() == " ".join(changed).split()
    for payload, vector in _state(client).values():
        np.testing.assert_allclose(vector, embedder.vector(payload["page_content"]), atol=1e-6)


def test_a_shorter_document_leaves_no_stale_chunks(client: QdrantClient, embedder: StandIn) -> None:
    _ingest(client, embedder, Document("doc", "\n\n".join(LONG)), Document("other", "stays"))
    before = len(_state(client))
    report = _ingest(client, embedder, Document("doc", LONG[3]), Document("other", "stays"))
    assert _counts(report) == (0, 1, 1, before - len(_state(client)), 0)
    assert " ".join(_texts(client, "doc")).split() == LONG[3].split()
    assert _counts(_ingest(client, embedder, Document("doc", LONG[3]))) == (0, 0, 1, 0, 0)


def test_new_points_are_acknowledged_before_stale_ones_are_deleted(
    client: QdrantClient, embedder: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    _ingest(client, embedder, Document("doc", "\n\n".join(LONG)))

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(client, "delete", killed)
        with pytest.raises(KeyboardInterrupt):
            _ingest(client, embedder, Document("doc", "all new"))
    assert _texts(client, "doc")[0] == "all new" and len(_texts(client, "doc")) > 5
    embedder.embedded.clear()
    report = _ingest(client, embedder, Document("doc", "all new"))
    assert report.deleted > 4 and embedder.embedded == []
    assert _texts(client, "doc") == ["all new"]


def test_a_run_interrupted_between_two_writes_is_completed_by_the_next(
    client: QdrantClient, embedder: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = QdrantClient(":memory:")
    text = "\n\n".join(LONG)
    _ingest(expected, StandIn(), Document("doc", text))
    upsert, writes = client.upsert, iter([True, False])

    def cut_short(*args: Any, **options: Any) -> models.UpdateResult:
        if not next(writes):
            raise KeyboardInterrupt
        return upsert(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(client, "upsert", cut_short)
        with pytest.raises(KeyboardInterrupt):
            _ingest(client, embedder, Document("doc", text))
    assert len(_state(client)) == 1
    report = _ingest(client, embedder, Document("doc", text))
    assert _counts(report) == (0, 1, 0, 0, 0) and report.reused == 1
    assert [p for p, _ in _state(client).values()] == [_state(expected)[key][0] for key in _state(client)]


def test_two_documents_with_equal_texts_stay_separate(client: QdrantClient, embedder: StandIn) -> None:
    assert _counts(_ingest(client, embedder, Document("a", "same"), Document("b", "same"))) == (2, 0, 0, 0, 0)
    assert len(_state(client)) == 2
    _ingest(client, embedder, Document("a", "other"))
    assert (_texts(client, "a"), _texts(client, "b")) == (["other"], ["same"])


def test_new_metadata_is_stored_without_embedding_again(client: QdrantClient, embedder: StandIn) -> None:
    _ingest(client, embedder, Document("a", "text", {"year": 2024}))
    report = _ingest(client, embedder, Document("a", "text", {"year": 2025, "nested": {"list": [1, None, "é"]}}))
    assert _counts(report) == (0, 1, 0, 0, 0)
    assert embedder.embedded == ["text"]
    ((payload, _),) = _state(client).values()
    assert payload["metadata"]["year"] == 2025 and payload["metadata"]["nested"] == {"list": [1, None, "é"]}


def test_a_bad_chunk_fails_only_its_document_and_keeps_its_old_version(client: QdrantClient, embedder: StandIn) -> None:
    _ingest(client, embedder, Document("bad", "\n\n".join(LONG)))
    before = _state(client)
    poisoned = "\n\n".join([*LONG[:6], f"The {POISON} is here.", *LONG[6:], POISON])
    documents = [
        Document("good", "one"),
        Document("bad", poisoned),
        Document("new bad", poisoned),
        Document("fine", "x"),
    ]
    report = _ingest(client, embedder, *documents, batch_size=3)
    assert _counts(report) == (2, 0, 0, 0, 2)
    assert [failure.id for failure in report.failed] == ["bad", "new bad"]
    for failure in report.failed:  # the position in the batch is not the user's
        assert re.fullmatch(r"chunk \d (.*characters .*): the backend broke", failure.reason), failure.reason
    after = _state(client)
    assert {key: after[key] for key in before} == before
    assert _texts(client, "new bad") == [] and _texts(client, "good") == ["one"] and _texts(client, "fine") == ["x"]
    again = _ingest(client, embedder, Document("bad", poisoned))
    assert _counts(again) == (0, 0, 0, 0, 1), "a failed document was not tried again"


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (Document("d", " \n"), "empty or white space"),
        (Document("d", None), "not a string"),  # type: ignore[arg-type]
        (Document("d", "lone \ud800 surrogate"), "lone surrogate"),
        (Document("d", "bell \x07"), "control character"),
        (Document("", "text"), "id is ''"),
        (Document("d", "text", {"when": datetime.datetime(2026, 1, 1)}), "datetime is not JSON"),
        (Document("d", "text", {"score": float("nan")}), "not JSON"),
        (Document("d", "text", {"bytes": b"x"}), "bytes is not JSON"),
        (Document("d", "text", {"text": "\udc80"}), "not JSON"),
        (Document("d", "text", {1: "a"}), "key 1, not a string"),  # type: ignore[dict-item]
        (Document("d", "text", {"sizes": {1: "a"}}), "key 1, not a string"),
        (Document("d", "text", {"_chunk": 1}), "_chunk"),
        (Document("d", "text", [1]), "metadata is a list"),  # type: ignore[arg-type]
    ],
)
def test_a_bad_document_is_reported_and_the_rest_is_ingested(
    client: QdrantClient, embedder: StandIn, document: Document, reason: str
) -> None:
    report = _ingest(client, embedder, Document("first", "one"), document, Document("last", "two"))
    assert _counts(report) == (2, 0, 0, 0, 1)
    assert report.failed[0].id == document.id and reason in report.failed[0].reason
    assert embedder.embedded == ["one", "two"]


def test_a_numpy_bool_is_accepted_as_a_flag(client: QdrantClient, embedder: StandIn) -> None:
    assert _counts(_ingest(client, embedder, Document("a", "# One", markdown=np.True_))) == (1, 0, 0, 0, 0)  # type: ignore[arg-type]
    assert _counts(_ingest(client, embedder, Document("a", "# One", markdown=True))) == (0, 0, 1, 0, 0)


def test_a_repeated_id_is_reported_unless_the_document_is_equal(client: QdrantClient, embedder: StandIn) -> None:
    report = _ingest(client, embedder, Document("a", "one"), Document("a", "one"), Document("a", "two"))
    assert _counts(report) == (1, 0, 1, 0, 1)
    assert "used before in this run" in report.failed[0].reason
    assert _texts(client, "a") == ["one"]


def test_non_documents_raise_with_their_index(client: QdrantClient, embedder: StandIn) -> None:
    with pytest.raises(InputError, match="item 1 is not a Document but str") as caught:
        _ingest(client, embedder, Document("a", "one"), "two")  # type: ignore[arg-type]
    assert caught.value.index == 1
    with pytest.raises(InputError, match="not one Document"):
        ingest(Document("a", "b"), collection="docs", embedder=embedder, client=client)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="batch_size"):
        _ingest(client, embedder, batch_size=0)


def test_an_empty_ingest_gives_an_empty_report(client: QdrantClient, embedder: StandIn) -> None:
    assert asdict(_ingest(client, embedder)) == asdict(IngestReport())


def test_skipped_files_go_into_the_report(client: QdrantClient, embedder: StandIn, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jsonl").write_text('{"text": "one"}\nnot json\n{"text": "three"}\n')
    (folder / "b.txt").write_bytes(b"\0")
    documents = read_documents(folder)
    report = ingest(documents, collection="docs", embedder=embedder, client=client)
    assert _counts(report) == (2, 0, 0, 0, 0)
    assert [(Path(s.path).name, s.line) for s in report.skipped] == [("a.jsonl", 2), ("b.txt", None)]


def test_documents_are_read_lazily(embedder: StandIn) -> None:
    ahead = []
    client = QdrantClient(":memory:")

    def endless() -> Iterator[Document]:
        for number in range(1000):
            ahead.append(number - len(embedder.embedded))
            yield Document(str(number), f"text {number}")

    report = ingest(endless(), collection="docs", embedder=embedder, client=client, batch_size=8)
    assert report.added == 1000
    assert max(ahead) <= 3 * 64 + 8  # one group is embedded, one waits, one is being read
    assert max(embedder.batches) == 8


def test_progress_counts_up_to_the_report(client: QdrantClient, embedder: StandIn) -> None:
    seen: list[Progress] = []
    documents = [Document(str(n), f"text {n}") for n in range(100)]
    report = _ingest(client, embedder, *documents, batch_size=16, progress=seen.append)
    assert [p.documents for p in seen] == sorted(p.documents for p in seen)
    assert seen[-1] == Progress(100, report.embedded, report.prompt_tokens, 100) == Progress(100, 100, 690, 100)
    assert len({p.documents for p in seen}) > 5


@pytest.mark.slow
def test_a_document_of_a_megabyte_is_stored_completely() -> None:
    client, embedder = QdrantClient(":memory:"), StandIn(max_length=4096)
    text = "".join(f"Line {n}: the quick brown fox jumps over the lazy dog. 你好\n" for n in range(17_000))
    assert len(text) > 1_000_000
    report = _ingest(client, embedder, Document("big", text))
    assert _counts(report) == (1, 0, 0, 0, 0)
    assert "".join(_texts(client, "big")).replace("\n", "") == text.replace("\n", "")
    assert _counts(_ingest(client, embedder, Document("big", text))) == (0, 0, 1, 0, 0)


def test_a_chunk_that_the_model_would_truncate_is_not_stored(
    client: QdrantClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = StandIn()
    monkeypatch.setattr("gircse_rag.documents.chunking.Chunker.cut", _one_chunk)
    with pytest.warns(GircseWarning, match="longer than 64 tokens"):
        report = _ingest(client, embedder, Document("long", " ".join(LONG)))
    assert _counts(report) == (0, 0, 0, 0, 1) and "longer than the model reads" in report.failed[0].reason
    assert _state(client) == {}


def _one_chunk(_: object, document: Document) -> list[Any]:
    from gircse_rag.documents.chunking import Chunk

    return [Chunk(0, document.text, 0, len(document.text))]


def test_the_payload_holds_text_and_metadata_once(client: QdrantClient, embedder: StandIn) -> None:
    _ingest(client, embedder, Document("guide.md", "# One\n\nFirst.", {"lang": "en", "source": "web"}, markdown=True))
    ((key, (payload, _)),) = _state(client).items()
    place = {"number": 0, "chunks": 1, "start": 0, "end": 13, "headings": ["One"]}
    assert key == point_id("guide.md", 0)
    assert payload["page_content"] == "# One\n\nFirst."
    assert payload["metadata"] == {"source": "web", "lang": "en", "_chunk": place}
    assert payload["doc_id"] == "guide.md"
    assert payload.keys() == {"page_content", "metadata", "doc_id", "gircse"}
    assert json.dumps(payload).count("First.") == 1
    node = make_node(key, payload)
    assert (node["id_"], node["text"], node["metadata"]) == (key, payload["page_content"], payload["metadata"])
    assert (node["start_char_idx"], node["end_char_idx"]) == (0, 13)
    assert node["relationships"]["1"]["node_id"] == "guide.md"


def test_an_unconfirmed_write_is_an_error(
    client: QdrantClient, embedder: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    upsert = client.upsert

    def unconfirmed(*args: Any, **options: Any) -> models.UpdateResult:
        upsert(*args, **options)
        return models.UpdateResult(status=models.UpdateStatus.ACKNOWLEDGED)

    monkeypatch.setattr(client, "upsert", unconfirmed)
    with pytest.raises(StoreError, match=r"failed [2-9] times.*did not confirm"):
        _ingest(client, embedder, Document("a", "one"), deadline=1)


def _nested(depth: int) -> list[object]:
    value: list[object] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (lambda: Document("a\ud800", "text"), "lone surrogate"),
        (lambda: Document("deep", "text", {"deep": _nested(900)}), "nested more than"),
        (lambda: Document("deeper", "text", {"deep": _nested(100_000)}), "nested more than"),
    ],
)
def test_a_document_that_no_store_can_hold_fails_alone(
    client: QdrantClient, embedder: StandIn, bad: Callable[[], Document], reason: str
) -> None:
    report = _ingest(client, embedder, Document("before", "one"), bad(), Document("after", "two"))
    assert report.added == 2
    (failed,) = report.failed
    assert reason in failed.reason
