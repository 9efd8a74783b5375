"""A crash at every write in turn: what is stored afterwards, and how much is embedded again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from qdrant_client import QdrantClient
from qdrant_client.http.exceptions import UnexpectedResponse

from gircse_rag.qdrant import Document, ingest, open_client
from gircse_rag.qdrant import points as points_module
from gircse_rag.qdrant.points import read_record
from tests.soak.kills import ExactEmbedder, assert_same, read_state
from tests.stand_in import POISON, StandIn

BATCH = 4


def _document(name: str, *paragraphs: int | str) -> Document:
    return Document(name, "\n\n".join(f"{name}: paragraph {number} of a document of mine." for number in paragraphs))


BEFORE = [
    _document("reversed", *range(10)),
    _document("shifted", *range(6)),
    _document("shorter", *range(9)),
    _document("same", 1, 2),
]
AFTER = [
    _document("reversed", *reversed(range(10))),
    _document("shifted", "new", *range(6)),
    _document("shorter", 0, "x", 2),
    _document("same", 1, 2),
    _document("long", *range(11)),
    _document("longer", *range(20, 30)),
]


class CrashError(Exception):
    pass


def _ingest(client: QdrantClient, documents: Sequence[Document], embedder: StandIn) -> Any:
    return ingest(documents, collection="docs", embedder=embedder, client=client, batch_size=BATCH)


def _crash_at(client: QdrantClient, patch: pytest.MonkeyPatch, number: int, *, applied: bool) -> list[int]:
    """Make write `number` raise, before or after it is applied, and all later ones. Returns the running write count."""
    writes = [0]

    def guarded(method: Any) -> Any:
        def write(*args: Any, **options: Any) -> Any:
            writes[0] += 1
            if writes[0] > number or (writes[0] == number and not applied):
                raise CrashError
            result = method(*args, **options)
            if writes[0] == number:
                raise CrashError
            return result

        return write

    for name in ("upsert", "set_payload", "delete"):
        patch.setattr(client, name, guarded(getattr(client, name)))
    return writes


@pytest.mark.slow
def test_after_a_crash_at_any_write_the_next_run_repeats_at_most_two_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected, plain = QdrantClient(":memory:"), ExactEmbedder()
    _ingest(expected, BEFORE, ExactEmbedder())
    with monkeypatch.context() as patch:
        writes = _crash_at(expected, patch, 10**6, applied=False)
        _ingest(expected, AFTER, plain)
    assert len(plain.embedded) == 1 + 1 + 11 + 10 and writes[0] > 15

    for number in range(1, writes[0] + 1):
        client, first, second = QdrantClient(":memory:"), ExactEmbedder(), ExactEmbedder()
        _ingest(client, BEFORE, ExactEmbedder())
        with monkeypatch.context() as patch, pytest.raises(CrashError):
            _crash_at(client, patch, number, applied=number % 2 == 0)
            _ingest(client, AFTER, first)
        _ingest(client, AFTER, second)
        assert_same(read_state(client), read_state(expected))
        assert set(second.embedded) <= set(plain.embedded), "a stored vector was lost"
        assert len(set(first.embedded) & set(second.embedded)) <= 2 * BATCH
        assert _ingest(client, AFTER, second).unchanged == len(AFTER)


def test_a_document_that_fails_late_keeps_its_old_version(client: QdrantClient) -> None:
    """A long document fails in its last batch, after most of it was written."""
    _ingest(client, BEFORE, ExactEmbedder())
    before = read_state(client)
    broken = [
        _document("reversed", *range(50, 70), POISON),
        _document("unknown", *range(20), POISON),
        _document("shorter", *range(9), *range(30, 40), POISON),
    ]
    report = _ingest(client, broken, ExactEmbedder())
    assert [failure.id for failure in report.failed] == ["reversed", "unknown", "shorter"]
    assert report.embedded > 40
    assert_same(read_state(client), before)
    assert _ingest(client, BEFORE, ExactEmbedder()).unchanged == len(BEFORE)


def _refuse(client: QdrantClient, patch: pytest.MonkeyPatch, word: str, seconds: float = 0) -> None:
    """Make the store refuse every request with a text that contains `word`, after `seconds`."""
    upsert = client.upsert

    def refusing(collection: str, points: Any, **options: Any) -> Any:
        if any(word in point.payload["page_content"] for point in points):
            time.sleep(seconds)
            raise UnexpectedResponse(413, "too large", b"", httpx.Headers())
        return upsert(collection, points, **options)

    patch.setattr(client, "upsert", refusing)


REPLACEMENTS = ["XYZUVW", "FEDCBX", "XABCDEF", "XY", "AXC", "ABCDEFXY", "XYZUVWKLMN"]
"""Versions of the document ABCDEF: new, reversed, shifted, short, changed, longer, and longer than two batches."""


@pytest.mark.parametrize("kind", ["local", "edge"])
@pytest.mark.parametrize("letters", REPLACEMENTS)
def test_a_refused_replacement_keeps_the_old_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, letters: str, kind: Any
) -> None:
    """Whichever of its chunks the store refuses."""
    if kind == "edge":
        pytest.importorskip("qdrant_edge", reason="the edge extra is not installed")
    client = open_client(tmp_path / "store", engine=kind)
    old, other = _document("d", *"ABCDEF"), _document("other", 1, 2)
    _ingest(client, [old, other], ExactEmbedder())
    before = read_state(client)
    for refused in letters:
        with monkeypatch.context() as patch:
            patch.setattr(points_module, "_POINTS_PER_REQUEST", 2)  # so that only some are refused
            _refuse(client, patch, f"d: paragraph {refused}")
            report = _ingest(client, [_document("d", *letters), _document("other", refused, 3)], ExactEmbedder())
        assert [failure.id for failure in report.failed] == ["d"] and report.updated == 1
        assert "restored" not in report.failed[0].reason
        _ingest(client, [other], ExactEmbedder())
        assert_same(read_state(client), before)
        assert _ingest(client, [old], ExactEmbedder()).unchanged == 1
    assert _ingest(client, [_document("d", *letters)], ExactEmbedder()).updated == 1
    client.close()


@pytest.mark.slow
@pytest.mark.parametrize(("letters", "refused"), [("XYZUVW", "V"), ("FEDCBX", "X"), ("YABCDX", "X"), ("AXC", "X")])
def test_after_a_crash_during_a_rollback_either_version_can_be_ingested(
    monkeypatch: pytest.MonkeyPatch, letters: str, refused: str
) -> None:
    old, new = _document("d", *"ABCDEF"), _document("d", *letters)
    common = {f"d: paragraph {letter} of a document of mine." for letter in {*"ABCDEF"} & {*letters}}
    number, finished = 0, False
    while not finished:
        number += 1
        for version in (old, new):
            client, expected, embedder = QdrantClient(":memory:"), QdrantClient(":memory:"), ExactEmbedder()
            _ingest(client, [old], ExactEmbedder())
            with monkeypatch.context() as patch:
                patch.setattr(points_module, "_POINTS_PER_REQUEST", 2)
                _refuse(client, patch, f"d: paragraph {refused}")
                _crash_at(client, patch, number, applied=number % 2 == 0)
                try:
                    finished = _ingest(client, [new], ExactEmbedder()).failed != []
                except CrashError:
                    texts = {payload["page_content"] for payload, _ in read_state(client).values()}
                    assert texts >= common, "a vector that both versions need was lost"
            _ingest(client, [version], embedder)
            _ingest(expected, [version], ExactEmbedder())
            assert_same(read_state(client), read_state(expected))
            assert len(embedder.embedded) <= 2 * BATCH and _ingest(client, [version], embedder).unchanged == 1
    assert number > 3


def test_an_old_version_that_cannot_be_restored_is_reported(
    client: QdrantClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = _document("d", *"ABCDEF"), _document("d", *"XYZUVW")
    for version in (old, new):
        _ingest(client, [old, _document("other", 1)], ExactEmbedder())
        with monkeypatch.context() as patch:
            _refuse(client, patch, "paragraph V")
            _refuse(client, patch, "paragraph A")
            report = _ingest(client, [new, _document("other", 2)], ExactEmbedder())
        assert [failure.id for failure in report.failed] == ["d"] and report.updated == 1
        assert "its older version could not be restored either" in report.failed[0].reason
        assert _ingest(client, [version], ExactEmbedder()).updated == 1
        expected = QdrantClient(":memory:")
        _ingest(expected, [version, _document("other", 2)], ExactEmbedder())
        assert_same(read_state(client), read_state(expected))


@pytest.mark.parametrize("chunks", [12, 20])
def test_a_document_that_the_store_refused_is_not_written_again(
    client: QdrantClient, monkeypatch: pytest.MonkeyPatch, chunks: int
) -> None:
    """Its later chunks are embedded while the slow store still handles the fifth."""
    _refuse(client, monkeypatch, "paragraph 5 ", seconds=0.3)
    embedder = ExactEmbedder()
    report = _ingest(client, [_document("d", *range(chunks))], embedder)
    assert len(embedder.embedded) == 12, "more was embedded than the batch in flight"
    assert [failure.id for failure in report.failed] == ["d"]
    assert read_state(client) == {}


def test_a_document_that_fails_twice_is_counted_once(client: QdrantClient, monkeypatch: pytest.MonkeyPatch) -> None:
    _refuse(client, monkeypatch, "paragraph 5 ", seconds=0.3)
    report = _ingest(client, [_document("d", *range(10), POISON, *range(11, 20))], ExactEmbedder())
    assert [failure.id for failure in report.failed] == ["d"] and read_state(client) == {}


def test_the_old_version_stays_while_a_long_document_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    client = QdrantClient(":memory:")
    _ingest(client, BEFORE, ExactEmbedder())
    old = {key: payload["page_content"] for key, (payload, _) in read_state(client).items()}
    with monkeypatch.context() as patch, pytest.raises(CrashError):
        _crash_at(client, patch, 3, applied=True)
        _ingest(client, [_document("reversed", *range(100, 140))], ExactEmbedder())
    now = read_state(client)
    assert {key: now[key][0]["page_content"] for key in old} == old
    records = [read_record(payload) for payload, _ in now.values()]
    assert max(record.number for record in records if record is not None) >= 40, "no new chunk was written"
