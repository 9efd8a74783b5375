from __future__ import annotations

import numpy as np
import pytest

from gircse_rag.evaluation.metrics import (
    Estimate,
    average_precision,
    average_precision_rows,
    mean_estimate,
    rank,
    resamples,
    retrieval_metrics,
    spearman,
    v_measure,
)


def ranked(*documents: str) -> dict[str, float]:
    return {document: float(-position) for position, document in enumerate(documents)}


def test_ndcg_by_hand() -> None:
    # relevant at ranks 2 and 4: (1/log2 3 + 1/log2 5) / (1 + 1/log2 3) = 1.06161 / 1.63093
    found = retrieval_metrics({"q": {"a": 1, "b": 1}}, {"q": ranked("x", "a", "y", "b")})
    assert found["ndcg@10"][0] == pytest.approx(0.650921, abs=1e-6)
    assert found["recall@10"][0] == 1.0
    assert found["mrr@10"][0] == 0.5


def test_ndcg_uses_grades_linearly() -> None:
    # gains 1, 2 against the ideal 2, 1: (1 + 2/log2 3) / (2 + 1/log2 3) = 2.26186 / 2.63093
    found = retrieval_metrics({"q": {"a": 2, "b": 1}}, {"q": ranked("b", "a")})
    assert found["ndcg@10"][0] == pytest.approx(0.859719, abs=1e-6)


def test_cut_offs_by_hand() -> None:
    fillers = [f"x{i}" for i in range(110)]
    qrels = {"ten": {"a": 1}, "eleven": {"a": 1}, "half": {"a": 1, "b": 1}, "missing": {"a": 1}, "late": {"a": 1}}
    run = {
        "ten": ranked(*fillers[:9], "a"),
        "eleven": ranked(*fillers[:10], "a"),
        "half": ranked("a", *fillers[:20], "b"),
        "late": ranked(*fillers[:100], "a"),
    }
    found = retrieval_metrics(qrels, run)
    assert found["mrr@10"] == pytest.approx([0.1, 0.0, 1.0, 0.0, 0.0])
    assert found["recall@10"] == pytest.approx([1.0, 0.0, 0.5, 0.0, 0.0])
    assert found["recall@100"] == pytest.approx([1.0, 1.0, 1.0, 0.0, 0.0])
    assert found["ndcg@10"][:2] == pytest.approx([1 / np.log2(11), 0.0])


def test_a_judgement_of_zero_is_not_relevant() -> None:
    found = retrieval_metrics({"q": {"a": 0, "b": 1}}, {"q": ranked("a", "b")})
    assert found["mrr@10"][0] == 0.5
    assert found["recall@10"][0] == 1.0


def test_rank_keeps_the_hundred_nearest() -> None:
    rng = np.random.default_rng(0)
    queries, documents = rng.standard_normal((300, 8)), rng.standard_normal((150, 8))
    run = rank(queries, documents, [f"q{i}" for i in range(300)], [str(i) for i in range(150)])
    for row in (0, 255, 256, 299):
        best = np.argsort(-(documents @ queries[row]))[:100]
        assert sorted(run[f"q{row}"], key=lambda d: -run[f"q{row}"][d]) == [str(i) for i in best]


def test_rank_with_fewer_documents_than_the_depth() -> None:
    run = rank(np.eye(2), np.eye(2), ["a", "b"], ["x", "y"])
    assert run == {"a": {"x": 1.0, "y": 0.0}, "b": {"x": 0.0, "y": 1.0}}


def test_spearman_by_hand() -> None:
    # one swap of neighbours among four: 1 - 6 * 2 / (4 * 15)
    assert spearman(np.array([0.1, 0.3, 0.2, 0.4]), np.array([1.0, 2.0, 3.0, 4.0]), 0).value == pytest.approx(0.8)
    # a tie takes the mean rank: ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4 give 4.5 / sqrt(4.5 * 5)
    tied = spearman(np.array([0.0, 0.5, 0.5, 1.0]), np.array([1.0, 2.0, 3.0, 4.0]), 0)
    assert tied.value == pytest.approx(0.948683, abs=1e-6)
    assert spearman(np.zeros(4), np.arange(4.0), 0).value == 0.0


def test_spearman_replicates_are_spearman_of_resampled_pairs() -> None:
    from scipy.stats import spearmanr

    rng = np.random.default_rng(1)
    x = rng.standard_normal(50)
    y = np.round(x + rng.standard_normal(50))
    estimate = spearman(x, y, 7)
    rows = resamples(50, 7)
    for i in (0, 99, 100, 999):
        assert estimate.replicates[i] == pytest.approx(spearmanr(x[rows[i]], y[rows[i]]).statistic)


def test_average_precision_by_hand() -> None:
    # same, other, same, other by similarity: (1/1 + 2/3) / 2
    found = average_precision(np.array([0.9, 0.8, 0.7, 0.1]), np.array([1.0, 0.0, 1.0, 0.0]), 0)
    assert found.value == pytest.approx(5 / 6)


def test_average_precision_replicates_are_average_precision_of_resampled_pairs() -> None:
    from sklearn.metrics import average_precision_score

    rng = np.random.default_rng(1)
    relevant = (rng.random(60) < 0.4).astype(float)
    similarities = np.round(relevant + rng.standard_normal(60), 1)  # with ties
    estimate = average_precision(similarities, relevant, 7)
    rows = resamples(60, 7)
    for i in (0, 500, 999):
        assert estimate.replicates[i] == pytest.approx(
            average_precision_score(relevant[rows[i]], similarities[rows[i]])
        )


def test_average_precision_of_few_relevant_pairs_has_all_replicates() -> None:
    estimate = average_precision(np.array([0.9, 0.1, 0.2]), np.array([1.0, 0.0, 0.0]), 0)
    assert estimate.value == 1.0
    assert (estimate.replicates == np.ones(1000)).all()


def test_v_measure_by_hand() -> None:
    labels = ["a", "a", "b", "b"]
    assert v_measure(labels, [np.array([1, 1, 0, 0])], 0).value == pytest.approx(1.0)
    assert v_measure(labels, [np.array([0, 0, 0, 0])], 0).value == 0.0
    # homogeneity 1, completeness 1 - 0.5/1.5 = 2/3: v = 2 * (2/3) / (5/3)
    split = np.array([0, 0, 1, 2])
    assert v_measure(labels, [split], 0).value == pytest.approx(0.8)
    assert v_measure(labels, [split, np.array([1, 1, 0, 0])], 0).value == pytest.approx(0.9)


def test_the_v_measure_interval_contains_the_value() -> None:
    rng = np.random.default_rng(0)
    labels = [str(i % 30) for i in range(300)]
    assigned = np.where(rng.random(300) < 0.6, np.arange(300) % 30, rng.integers(0, 30, 300))
    estimate = v_measure(labels, [assigned], 0)
    low, high = estimate.interval
    assert low < estimate.value < high
    assert estimate.replicates.mean() == pytest.approx(estimate.value)


def test_v_measure_replicates_vary_like_resampled_texts() -> None:
    from sklearn.metrics import v_measure_score

    rng = np.random.default_rng(3)
    labels, assigned = rng.integers(0, 5, 80), rng.integers(0, 4, 80)
    estimate = v_measure([str(x) for x in labels], [assigned], 7)
    rows = resamples(80, 7)
    drawn = [v_measure_score(labels[row], assigned[row]) for row in rows[:5]]
    assert np.diff(estimate.replicates[:5]) == pytest.approx(np.diff(drawn))


def test_average_precision_rows_by_hand() -> None:
    similarities = np.array([[0.9, 0.8, 0.7, 0.6]] * 3)
    relevant = np.array([[0, 1, 0, 1], [0, 1, 0, 1], [0, 0, 0, 0]], dtype=bool)
    ranked_ = np.array([[1, 1, 1, 1], [0, 1, 1, 1], [1, 1, 1, 1]], dtype=bool)
    found = average_precision_rows(similarities, relevant, ranked_)
    assert found[:2] == pytest.approx([(1 / 2 + 2 / 4) / 2, (1 + 2 / 3) / 2])
    assert np.isnan(found[2])


def test_relevant_entries_outside_the_ranking_are_ignored() -> None:
    found = average_precision_rows(np.array([[0.9, 0.5]]), np.array([[True, True]]), np.array([[False, True]]))
    assert found == pytest.approx([1.0])


def test_the_mean_interval_matches_that_of_a_proportion() -> None:
    values = np.array([1.0] * 300 + [0.0] * 100)
    estimate = mean_estimate(values, 3)
    low, high = estimate.interval
    half = 1.96 * np.sqrt(0.75 * 0.25 / 400)
    assert estimate.value == 0.75
    assert low == pytest.approx(0.75 - half, abs=0.006)
    assert high == pytest.approx(0.75 + half, abs=0.006)
    assert mean_estimate(np.full(20, 0.25), 0).interval == (0.25, 0.25)


def test_equal_seeds_resample_equal_rows() -> None:
    assert (resamples(9, 4) == resamples(9, 4)).all()
    assert not (resamples(9, 4) == resamples(9, 5)).all()
    assert resamples(9, 4).min() == 0 and resamples(9, 4).max() == 8


def test_interval_is_the_middle_95_percent() -> None:
    assert Estimate(0.5, np.linspace(0, 1, 1001)).interval == pytest.approx((0.025, 0.975))
