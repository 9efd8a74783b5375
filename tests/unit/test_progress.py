"""Progress: per text and per document, a line every ten seconds in a log, and nothing else on stderr."""

from __future__ import annotations

import numpy as np
import pytest
from qdrant_client import QdrantClient

from gircse_rag import progress
from gircse_rag.errors import plural
from gircse_rag.qdrant import Document, Progress, ingest
from tests.stand_in import POISON, StandIn


class Clock:
    """`time.monotonic` that moves only when told."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_a_log_gets_a_line_every_ten_seconds(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress.progress("documents") as update:
        for done in range(1, 31):
            clock.now += 1
            update(done, 60)
    assert capsys.readouterr().err == (
        "documents: 10 of 60, 0.9/s, 56 s left\ndocuments: 20 of 60, 0.9/s, 42 s left\n"
        "documents: 30 of 60, 1.0/s, 31 s left\n"
    )


def test_a_short_run_leaves_no_line(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    StandIn().embed_documents(["a", "b"], show_progress=True)
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes stderr for a terminal
    monkeypatch.setenv("COLUMNS", "100")
    embedder = StandIn()
    vectors = embedder.embed_queries(["a", "b", "a"], show_progress=True)
    assert "embedding" in (shown := capsys.readouterr().err) and "2/2" in shown, "duplicates are computed once"
    np.testing.assert_array_equal(vectors, embedder.embed_queries(["a", "b", "a"]))
    embedder.embed(["a"], "document")
    assert capsys.readouterr().err == ""


def test_every_text_is_reported_once_it_is_done() -> None:
    done: list[int] = []
    StandIn().embed(["a", POISON, "a", " "], "document", on_error="return", on_text=done.append)
    assert sorted(done) == [0, 1, 2], "a text that is refused is never begun"


def test_an_ingest_reports_every_document_of_a_batch() -> None:
    seen: list[Progress] = []
    documents = [Document(str(n), f"text {n}") for n in range(40)]
    options = {"collection": "docs", "embedder": StandIn(), "client": QdrantClient(":memory:")}
    ingest(documents, batch_size=128, progress=seen.append, **options)  # type: ignore[arg-type]
    finished = [state.finished for state in seen]
    assert finished == sorted(finished) and set(range(1, 41)) <= set(finished)
    assert all(state.documents == 0 for state in seen if 0 < state.finished < 40), "nothing is stored yet"
    assert seen[-1].documents == seen[-1].finished == 40


def test_a_document_of_several_batches_is_finished_with_its_last_chunk() -> None:
    seen: list[Progress] = []
    text = "\n\n".join(f"Paragraph {number} of a document that has several chunks." for number in range(9))
    options = {"collection": "docs", "embedder": StandIn(), "client": QdrantClient(":memory:")}
    ingest([Document("long", text)], batch_size=4, progress=seen.append, **options)  # type: ignore[arg-type]
    assert [state.chunks for state in seen if state.finished] == [8, 9, 9] or seen[-1].finished == 1
    assert all(state.finished == 0 for state in seen if state.chunks < 8)


@pytest.mark.parametrize(("count", "text"), [(0, "0 chunks"), (1, "1 chunk"), (2, "2 chunks")])
def test_nouns_agree_with_their_number(count: int, text: str) -> None:
    assert plural(count, "chunk") == text
    assert plural(count, "query", "queries") == text.replace("chunks", "queries").replace("chunk", "query")
