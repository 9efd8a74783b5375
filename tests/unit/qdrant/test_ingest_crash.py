"""A crash at every single write, one after the other: what is there afterwards, and what it cost."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import httpx
import pytest
from qdrant_client import QdrantClient
from qdrant_client.http.exceptions import UnexpectedResponse

from gircse_rag.qdrant import Document, ingest
from gircse_rag.qdrant.points import read_record
from tests.soak.kills import Exact, assert_same, state
from tests.unit.qdrant.standin import POISON, StandIn

BATCH = 4


def _one(name: str, *paragraphs: int | str) -> Document:
    return Document(name, "\n\n".join(f"{name}: paragraph {number} of a document of mine." for number in paragraphs))


BEFORE = [_one("reversed", *range(10)), _one("shifted", *range(6)), _one("shorter", *range(9)), _one("same", 1, 2)]
AFTER = [
    _one("reversed", *reversed(range(10))),
    _one("shifted", "new", *range(6)),
    _one("shorter", 0, "x", 2),
    _one("same", 1, 2),
    _one("long", *range(11)),
    _one("longer", *range(20, 30)),
]


class CrashError(Exception):
    pass


def _bring(client: QdrantClient, documents: Sequence[Document], embedder: StandIn) -> Any:
    return ingest(documents, collection="docs", embedder=embedder, client=client, batch_size=BATCH)  # type: ignore[arg-type]


def _crash_at(client: QdrantClient, patch: pytest.MonkeyPatch, number: int, *, applied: bool) -> list[int]:
    """Let the write of this number raise, before or after it was done, and all that follow; the count of writes."""
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


def test_after_a_crash_at_any_write_the_next_run_completes_it_and_embeds_no_more_than_two_batches_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected, plain = QdrantClient(":memory:"), Exact()
    _bring(expected, BEFORE, Exact())
    with monkeypatch.context() as patch:
        writes = _crash_at(expected, patch, 10**6, applied=False)
        _bring(expected, AFTER, plain)
    assert len(plain.embedded) == 1 + 1 + 11 + 10 and writes[0] > 15

    for number in range(1, writes[0] + 1):
        client, first, second = QdrantClient(":memory:"), Exact(), Exact()
        _bring(client, BEFORE, Exact())
        with monkeypatch.context() as patch, pytest.raises(CrashError):
            _crash_at(client, patch, number, applied=number % 2 == 0)
            _bring(client, AFTER, first)
        _bring(client, AFTER, second)
        assert_same(state(client), state(expected))
        assert set(second.embedded) <= set(plain.embedded), "a vector that was stored was lost"
        assert len(set(first.embedded) & set(second.embedded)) <= 2 * BATCH
        assert _bring(client, AFTER, second).unchanged == len(AFTER)


def test_what_is_taken_back_leaves_what_was_there(client: QdrantClient) -> None:
    """A long document fails in its last batch, when most of it has been written."""
    _bring(client, BEFORE, Exact())
    before = state(client)
    broken = [
        _one("reversed", *range(50, 70), POISON),
        _one("unknown", *range(20), POISON),
        _one("shorter", *range(9), *range(30, 40), POISON),
    ]
    report = _bring(client, broken, Exact())
    assert [failure.id for failure in report.failed] == ["reversed", "unknown", "shorter"]
    assert report.embedded > 40
    assert_same(state(client), before)
    assert _bring(client, BEFORE, Exact()).unchanged == len(BEFORE)


def _refuse(client: QdrantClient, patch: pytest.MonkeyPatch, word: str, seconds: float = 0) -> None:
    """Let the store refuse every request with a text that holds `word`, after so many seconds."""
    upsert = client.upsert

    def refusing(collection: str, points: Any, **options: Any) -> Any:
        if any(word in point.payload["page_content"] for point in points):
            time.sleep(seconds)
            raise UnexpectedResponse(413, "too large", b"", httpx.Headers())
        return upsert(collection, points, **options)

    patch.setattr(client, "upsert", refusing)


@pytest.mark.parametrize("then", ["the old version", "the new version"])
def test_a_replacement_refused_half_way_is_not_taken_for_the_old_version(
    client: QdrantClient, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    old, new = _one("d", *"ABCDEF"), _one("d", *"XYZUVW")
    _bring(client, [old], Exact())
    with monkeypatch.context() as patch:
        _refuse(client, patch, "paragraph V")
        report = _bring(client, [new], Exact())
    assert [failure.id for failure in report.failed] == ["d"] and report.updated == 0
    wanted, expected = old if then == "the old version" else new, QdrantClient(":memory:")
    _bring(expected, [wanted], Exact())
    again = _bring(client, [wanted], Exact())
    assert (again.updated, again.unchanged, again.failed) == (1, 0, [])
    assert_same(state(client), state(expected))
    assert _bring(client, [wanted], Exact()).unchanged == 1


@pytest.mark.parametrize("chunks", [12, 20])
def test_a_document_that_the_store_refused_is_not_written_again(
    client: QdrantClient, monkeypatch: pytest.MonkeyPatch, chunks: int
) -> None:
    """Its later chunks are embedded while the slow store still thinks about its fifth."""
    _refuse(client, monkeypatch, "paragraph 5 ", seconds=0.3)
    embedder = Exact()
    report = _bring(client, [_one("d", *range(chunks))], embedder)
    assert len(embedder.embedded) == 12, "a batch was on its way, and no more"
    assert [failure.id for failure in report.failed] == ["d"]
    assert state(client) == {}


def test_a_document_that_fails_twice_is_counted_once(client: QdrantClient, monkeypatch: pytest.MonkeyPatch) -> None:
    _refuse(client, monkeypatch, "paragraph 5 ", seconds=0.3)
    report = _bring(client, [_one("d", *range(10), POISON, *range(11, 20))], Exact())
    assert [failure.id for failure in report.failed] == ["d"] and state(client) == {}


def test_while_a_long_document_is_replaced_its_old_version_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    client = QdrantClient(":memory:")
    _bring(client, BEFORE, Exact())
    old = {key: payload["page_content"] for key, (payload, _) in state(client).items()}
    with monkeypatch.context() as patch, pytest.raises(CrashError):
        _crash_at(client, patch, 3, applied=True)
        _bring(client, [_one("reversed", *range(100, 140))], Exact())
    now = state(client)
    assert {key: now[key][0]["page_content"] for key in old} == old
    records = [read_record(payload) for payload, _ in now.values()]
    assert max(record.number for record in records if record is not None) >= 40, "and the new one waits behind it"
