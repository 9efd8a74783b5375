"""Representations fit on a line and say something."""

from __future__ import annotations

import pytest
from qdrant_client import QdrantClient

from gircse_rag import Embedder
from gircse_rag.evaluation.results import Report, Score, SetResult
from gircse_rag.qdrant import Document, IngestReport, MigrationReport, SkippedFile, ingest, search
from tests.stand_in import POISON, StandIn


def test_an_embedder_names_its_model(tiny_embedder: Embedder) -> None:
    shown = repr(tiny_embedder)
    assert shown.startswith("Embedder(") and tiny_embedder.fingerprint[:12] in shown
    assert (
        "dimension 32" in shown
        and "5 steps" in shown
        and type(tiny_embedder.backend).__name__ in shown
        and "\n" not in shown
    )


def test_an_embedding_result_has_sizes_and_no_numbers() -> None:
    embedder = StandIn()
    result = embedder.embed(["a", POISON], "document", on_error="return")
    assert repr(result) == "EmbeddingResult(2 vectors of dimension 16, 5 steps, 0 truncated, 1 error)"
    with pytest.warns(match="take 2, 7 refinement steps"):
        result = embedder.embed(["a", "b"], "document", steps=[2, 7])
    assert repr(result) == "EmbeddingResult(2 vectors of dimension 16, 2 to 7 steps, 0 truncated, 0 errors)"
    assert repr(embedder.embed([])) == "EmbeddingResult(0 vectors of dimension 16, 0 steps, 0 truncated, 0 errors)"


def test_hits_and_reports_fit_on_a_line() -> None:
    client, embedder = QdrantClient(":memory:"), StandIn()
    documents: list[Document | SkippedFile] = [
        Document("a", "one\n" + "word " * 9, {"much": "x" * 500}),
        SkippedFile("b.png", "no reader"),
    ]
    report = ingest(documents, collection="docs", embedder=embedder, client=client)
    assert repr(report).startswith("IngestReport(added=1, skipped=1, embedded=") and len(repr(report)) < 100
    report.kept_because = "because " * 50
    assert len(repr(report)) < 160
    (hit, *_) = search("one", collection="docs", embedder=embedder, client=client)
    assert repr(hit).startswith("Hit(") and "'a'" in repr(hit) and len(repr(hit)) < 80 and "\n" not in repr(hit)
    assert repr(IngestReport()) == "IngestReport()"
    assert repr(MigrationReport(points=3, failed={"x": "why"})) == "MigrationReport(points=3, failed=1)"


def test_evaluation_reports_show_their_scores() -> None:
    score = Score(45.25, 40.0, 50.0)
    result = SetResult("sts/mine", "sts", "spearman", {"spearman": {1: score, 5: score}}, {}, 0.1)
    assert repr(result) == "SetResult(sts/mine, spearman: K=1: 45.2, K=5: 45.2)"
    report = Report("m", (1, 5), (result,), {1: score, 5: score}, {})
    assert repr(report) == "Report('m', 1 set, mean K=1: 45.2, K=5: 45.2)"
