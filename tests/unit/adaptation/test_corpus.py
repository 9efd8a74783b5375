"""Answers are found among the chunks, and what has none is named."""

from __future__ import annotations

import numpy as np
import pytest

from gircse_rag.adaptation.corpus import Corpus, join_pairs
from gircse_rag.adaptation.pairs import Pair, SkippedPair
from gircse_rag.documents import Document
from gircse_rag.errors import InputError
from tests.stand_in import StandIn

LONG = "First part of the text here. " * 2 + "Second part tells about the moon. " * 2


@pytest.fixture
def corpus() -> Corpus:
    embedder = StandIn(max_length=64)
    documents = [
        Document("guide/start.md", "Press the green button."),
        Document("long.txt", LONG),
        Document("faq.csv#7", "Call us."),
        Document("bad.txt", "\0"),
        Document("long.txt", "again"),
    ]
    return Corpus.read(documents, embedder.tokenizer, embedder.spec)


def find(corpus: Corpus, **answer: str) -> list[int] | str:
    questions, skipped = join_pairs(corpus, [Pair("row 1", "Why?", **answer)])
    return sorted(questions[0].chunks) if questions else skipped[0].reason


def test_documents_are_cut_and_bad_ones_named(corpus: Corpus) -> None:
    assert corpus.documents == ["guide/start.md", "long.txt", "faq.csv#7"]
    assert len(corpus.chunks) == len(corpus.owners) and np.all(np.diff(corpus.owners) >= 0)
    assert len(corpus.members(1)) > 1 and corpus.members(2) == range(len(corpus.chunks) - 1, len(corpus.chunks))
    assert len(corpus.skipped) == 2 and "bad.txt" in corpus.skipped[0] and "same id" in corpus.skipped[1]


def test_an_answer_is_a_document_a_row_or_a_passage(corpus: Corpus) -> None:
    assert find(corpus, document="guide/start.md") == [0]
    assert find(corpus, document="long.txt") == list(corpus.members(1))
    assert find(corpus, document="7") == list(corpus.members(2))
    assert find(corpus, passage="press the GREEN button") == [0]
    assert find(corpus, passage=LONG) == list(corpus.members(1))


def test_a_passage_across_two_chunks_has_both(corpus: Corpus) -> None:
    first, second = (corpus.chunks[number].split() for number in list(corpus.members(1))[:2])
    assert find(corpus, passage=" ".join([*first[-3:], *second[:3]])) == list(corpus.members(1))[:2]


def test_unknown_answers_are_named_with_near_ids(corpus: Corpus) -> None:
    assert "no document has the id 'guide/strat.md'; similar ids: guide/start.md" in find(
        corpus, document="guide/strat.md"
    )
    assert "an id here: guide/start.md" in find(corpus, document="zzz")
    assert "'Eat more fruit' is in no document" in find(corpus, passage="Eat more fruit")
    assert find(corpus, passage="?!") == "the passage has no word"


def test_equal_questions_are_joined(corpus: Corpus) -> None:
    pairs: list[Pair | SkippedPair] = [
        Pair("1", "Why so?", document="guide/start.md"),
        SkippedPair("2", "bad"),
        Pair("3", "why SO", document="7"),
        Pair("4", "Why so?", document="7", instruction="Find it"),
    ]
    questions, skipped = join_pairs(corpus, pairs)
    assert [(len(question.documents), question.instruction) for question in questions] == [(2, None), (1, "Find it")]
    assert [pair.place for pair in skipped] == ["2"]


def test_a_corpus_needs_a_document() -> None:
    embedder = StandIn()
    with pytest.raises(InputError, match="no document to adapt to; the first problem: x: "):
        Corpus.read([Document("x", " ")], embedder.tokenizer, embedder.spec)
