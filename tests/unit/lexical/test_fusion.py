from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gircse_rag.lexical.fusion import DEPTH, Fused, fuse

DENSE = [("a", 0.9), ("b", 0.8), ("c", 0.5)]
TEXTS = 1000
UNIT = math.log(1 + TEXTS)


def test_the_score_is_the_weighted_mean_of_both_scaled_scores() -> None:
    assert fuse(DENSE, [("c", UNIT), ("d", UNIT / 2)], TEXTS) == [
        Fused("a", pytest.approx(1 / 1.5), 1, None),  # type: ignore[arg-type]
        Fused("b", pytest.approx(0.75 / 1.5), 2, None),  # type: ignore[arg-type]
        Fused("c", pytest.approx(0.5 / 1.5), 3, 1),  # type: ignore[arg-type]
        Fused("d", pytest.approx(0.25 / 1.5), None, 2),  # type: ignore[arg-type]
    ]


def test_a_sure_bm25_overrules_the_dense_ranking_and_an_unsure_one_does_not() -> None:
    assert fuse(DENSE, [("c", UNIT / 2)], TEXTS)[0].id == "a"
    assert fuse(DENSE, [("c", 2.5 * UNIT)], TEXTS)[0].id == "c"


def test_the_weight_of_bm25_is_limited() -> None:
    (best, *_) = fuse(DENSE, [("c", 100 * UNIT)], TEXTS)
    assert best.score == pytest.approx(1.5 / 2.5)


@pytest.mark.parametrize("lexical", [[], [("x", 1.0)]])
def test_either_ranking_may_be_empty(lexical: list[tuple[str, float]]) -> None:
    assert [each.id for each in fuse([], lexical, TEXTS)] == [text for text, _ in lexical]
    assert [each.id for each in fuse(DENSE, lexical, TEXTS)][:2] == ["a", "b"]


def test_equal_cosines_leave_the_decision_to_bm25() -> None:
    assert [each.id for each in fuse([("a", 0.5), ("b", 0.5)], [("b", 1.0)], TEXTS)] == ["b", "a"]


def test_a_deeper_ranking_does_not_change_the_scores_of_the_best() -> None:
    dense = [(number, 1 - number / 1000) for number in range(2 * DEPTH)]
    lexical = [(number, 9.0 - number / 100) for number in range(DEPTH // 2)]
    deep, shallow = (fuse(part, lexical, TEXTS) for part in (dense, dense[:DEPTH]))
    assert deep[: DEPTH - 1] == shallow[: DEPTH - 1]
    assert [each.id for each in deep] == [number for number, _ in dense]


_scores = st.lists(st.floats(0.001, 100), max_size=150).map(lambda scores: sorted(scores, reverse=True))


@given(_scores, _scores, st.integers(0, 200))
def test_scores_stay_in_0_to_1_and_agree_with_both_rankings(
    dense: list[float], lexical: list[float], shift: int
) -> None:
    first = [(number, score / 100) for number, score in enumerate(dense)]
    second = [(number + shift, score) for number, score in enumerate(lexical)]
    fused = fuse(first, second, TEXTS)
    assert {each.id for each in fused} == {text for text, _ in (*first, *second)}
    assert all(-1e-9 <= each.score <= 1 + 1e-9 for each in fused)
    scores = {each.id: each.score for each in fused}
    for better in fused:  # a text that is at least as good in both rankings is not below another
        worse = [
            each
            for each in fused
            if (each.dense_rank or 999) > (better.dense_rank or 999)
            and (each.lexical_rank or 999) > (better.lexical_rank or 999)
        ]
        assert all(scores[better.id] >= scores[each.id] - 1e-12 for each in worse)


def test_a_rare_word_counts_as_much_in_a_small_collection() -> None:
    def score(texts: int) -> float:
        """Of a text with the question's only word, which no other text has."""
        idf = math.log(1 + (texts - 0.5) / 1.5)
        return next(each.score for each in fuse(DENSE, [("c", 1.6 * idf)], texts) if each.id == "c")

    assert score(20) == pytest.approx(score(20_000), rel=0.1)
