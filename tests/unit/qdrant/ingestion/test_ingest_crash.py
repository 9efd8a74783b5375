"""A crash at every single write, one after the other: what is there afterwards, and what it cost."""

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


REPLACEMENTS = ["XYZUVW", "FEDCBX", "XABCDEF", "XY", "AXC", "ABCDEFXY", "XYZUVWKLMN"]
"""Versions of the document ABCDEF: new, reversed, shifted, shorter, both, longer, and longer than two batches."""


@pytest.mark.parametrize("kind", ["local", "edge"])
@pytest.mark.parametrize("letters", REPLACEMENTS)
def test_a_refused_replacement_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, letters: str, kind: Any
) -> None:
    """Whichever of its chunks the store does not take."""
    if kind == "edge":
        pytest.importorskip("qdrant_edge", reason="the edge extra is not installed")
    client = open_client(tmp_path / "store", engine=kind)
    old, other = _one("d", *"ABCDEF"), _one("other", 1, 2)
    _bring(client, [old, other], Exact())
    before = state(client)
    for refused in letters:
        with monkeypatch.context() as patch:
            patch.setattr(points_module, "_POINTS_PER_REQUEST", 2)  # some are taken and some refused
            _refuse(client, patch, f"d: paragraph {refused}")
            report = _bring(client, [_one("d", *letters), _one("other", refused, 3)], Exact())
        assert [failure.id for failure in report.failed] == ["d"] and report.updated == 1
        assert "put back" not in report.failed[0].reason
        _bring(client, [other], Exact())
        assert_same(state(client), before)
        assert _bring(client, [old], Exact()).unchanged == 1
    assert _bring(client, [_one("d", *letters)], Exact()).updated == 1
    client.close()


@pytest.mark.parametrize(("letters", "refused"), [("XYZUVW", "V"), ("FEDCBX", "X"), ("YABCDX", "X"), ("AXC", "X")])
def test_after_a_crash_while_a_refused_replacement_is_put_back_either_version_goes_on(
    monkeypatch: pytest.MonkeyPatch, letters: str, refused: str
) -> None:
    old, new = _one("d", *"ABCDEF"), _one("d", *letters)
    common = {f"d: paragraph {letter} of a document of mine." for letter in {*"ABCDEF"} & {*letters}}
    number, ended = 0, False
    while not ended:
        number += 1
        for wanted in (old, new):
            client, expected, embedder = QdrantClient(":memory:"), QdrantClient(":memory:"), Exact()
            _bring(client, [old], Exact())
            with monkeypatch.context() as patch:
                patch.setattr(points_module, "_POINTS_PER_REQUEST", 2)
                _refuse(client, patch, f"d: paragraph {refused}")
                _crash_at(client, patch, number, applied=number % 2 == 0)
                try:
                    ended = _bring(client, [new], Exact()).failed != []
                except CrashError:
                    texts = {payload["page_content"] for payload, _ in state(client).values()}
                    assert texts >= common, "a vector that both versions need was lost"
            _bring(client, [wanted], embedder)
            _bring(expected, [wanted], Exact())
            assert_same(state(client), state(expected))
            assert len(embedder.embedded) <= 2 * BATCH and _bring(client, [wanted], embedder).unchanged == 1
    assert number > 3


def test_an_older_version_that_the_store_does_not_take_back_either_is_told(
    client: QdrantClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = _one("d", *"ABCDEF"), _one("d", *"XYZUVW")
    for wanted in (old, new):
        _bring(client, [old, _one("other", 1)], Exact())
        with monkeypatch.context() as patch:
            _refuse(client, patch, "paragraph V")
            _refuse(client, patch, "paragraph A")
            report = _bring(client, [new, _one("other", 2)], Exact())
        assert [failure.id for failure in report.failed] == ["d"] and report.updated == 1
        assert "nor could its older version be put back" in report.failed[0].reason
        assert _bring(client, [wanted], Exact()).updated == 1
        expected = QdrantClient(":memory:")
        _bring(expected, [wanted, _one("other", 2)], Exact())
        assert_same(state(client), state(expected))


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
