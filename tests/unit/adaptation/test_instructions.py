"""Scores of hits: a document counts once, by its id or a row's; a passage where texts contain each other."""

from __future__ import annotations

import numpy as np
import pytest

from gircse_rag.adaptation.instructions import group_pairs, score_hits
from gircse_rag.adaptation.pairs import Pair, SkippedPair


def test_equal_questions_are_joined() -> None:
    pairs: list[Pair | SkippedPair] = [
        Pair("1", "Why so?", document="a"),
        Pair("2", "why SO", passage="The reason."),
        SkippedPair("3", "bad"),
        Pair("4", "How?", document="b"),
    ]
    asked, skipped = group_pairs(pairs)
    assert [(one.documents, one.passages) for one in asked] == [({"a"}, {"the reason"}), ({"b"}, set())]
    assert [pair.place for pair in skipped] == ["3"]


@pytest.mark.parametrize(
    ("pair", "hits", "rank"),
    [
        (Pair("1", "?", document="a"), [("b", "x"), ("b", "y"), ("a", "z")], 2),  # b counts once
        (Pair("1", "?", document="7"), [("faq.csv#8", "x"), ("faq.csv#7", "y")], 2),
        (Pair("1", "?", passage="two three"), [("a", "one"), ("a", "One two, three!"), ("b", "two")], 2),
        (Pair("1", "?", passage="one two three"), [(None, "four"), (None, "two three")], 2),
        (Pair("1", "?", document="a"), [("b", "x"), (None, "y")], 3),  # not found
    ],
)
def test_ranks(pair: Pair, hits: list[tuple[str | None, str]], rank: int) -> None:
    asked, _ = group_pairs([pair])
    ranking = score_hits(asked, [hits])
    assert ranking.ranks.tolist() == [rank]
    found = rank <= len(hits) and rank < 3
    assert ranking.values["mrr@10"].tolist() == [1 / rank if found else 0]
    assert ranking.values["ndcg@10"].tolist() == pytest.approx([1 / np.log2(1 + rank) if found else 0])


def test_all_answers_count() -> None:
    asked, _ = group_pairs([Pair("1", "?", document="a"), Pair("2", "?", document="b")])
    both = score_hits(asked, [[("a", "x"), ("b", "y")]])
    one = score_hits(asked, [[("a", "x"), ("c", "y")]])
    assert both.values["ndcg@10"][0] == 1 > one.values["ndcg@10"][0] > 0.5
    assert both.values["hit@1"].tolist() == one.values["hit@1"].tolist() == [1]
