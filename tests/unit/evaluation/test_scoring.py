from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from gircse_rag.errors import InputError
from gircse_rag.evaluation.scoring import LEAST_GAIN, score
from gircse_rag.evaluation.sets import (
    Choice,
    ChoiceContrastSet,
    ClusterSet,
    NestedContrastSet,
    PairSet,
    ProbeSet,
    RetrievalSet,
)


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def angles(*degrees: float) -> np.ndarray:
    radians = np.deg2rad(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def test_retrieval_ranks_by_cosine() -> None:
    data = RetrievalSet(
        "retrieval/x", "i", ("q1", "q2"), ("", ""), ("a", "b", "c"), ("",) * 3, {"q1": {"b": 1}, "q2": {"c": 1}}
    )
    # q1 at 0 degrees ranks a, b, c; q2 at 90 degrees ranks c, b, a
    found = score(data, {"queries": angles(0, 90), "documents": angles(5, 30, 80)})
    assert next(iter(found)) == data.main == "ndcg@10"
    assert found["ndcg@10"].value == pytest.approx((1 / np.log2(3) + 1) / 2)
    assert found["mrr@10"].value == pytest.approx(0.75)


def test_pairs_correlate_cosine_with_the_score() -> None:
    data = PairSet("sts/x", "i", ("a",) * 4, ("b",) * 4, (1.0, 2.0, 3.0, 4.0), binary=False)
    found = score(data, {"first": angles(0, 0, 0, 0), "second": angles(80, 20, 40, 10)})
    assert found["spearman"].value == pytest.approx(0.8)
    assert list(found) == [data.main]


def test_binary_pairs_lead_with_average_precision() -> None:
    data = PairSet("sts/x", "i", ("a",) * 4, ("b",) * 4, (1.0, 0.0, 1.0, 0.0), binary=True)
    found = score(data, {"first": angles(0, 0, 0, 0), "second": angles(10, 20, 30, 40)})
    assert list(found) == ["average_precision", "spearman"]
    assert found[data.main].value == pytest.approx(5 / 6)


def cones(count: int, width: float, seed: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """Unit vectors (count, 16) in one narrow cone, with three labels about `width` apart."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    rows = np.zeros((count, 16))
    rows[:, 0] = 1.0
    rows[np.arange(count), 1 + labels] += width
    return unit(rows + 0.1 * width * rng.standard_normal(rows.shape)), tuple(map(str, labels))


@pytest.mark.parametrize("width", [1.0, 0.01])
def test_probe_learns_labels_however_narrow_the_cone(width: float) -> None:
    train, train_labels = cones(90, width, 0)
    test, test_labels = cones(30, width, 1)
    data = ProbeSet("classification/x", "i", ("",) * 90, train_labels, ("",) * 30, test_labels)
    assert score(data, {"train": train, "test": test})["accuracy"].value == 1.0
    # rotate the test labels by one, so that every prediction is wrong
    rotated = replace(data, test_labels=test_labels[1:] + test_labels[:1])
    assert score(rotated, {"train": train, "test": test})["accuracy"].value == 0.0


def test_v_measure_of_clusters_and_of_noise() -> None:
    texts, labels = cones(60, 1.0, 0)
    data = ClusterSet("clustering/x", "i", ("",) * 60, labels)
    assert score(data, {"texts": texts})["v_measure"].value == pytest.approx(1.0)
    noise = unit(np.random.default_rng(0).standard_normal((60, 16)))
    assert score(data, {"texts": noise})["v_measure"].value < 0.3


FINE = tuple("aabbccdd" * 3)
COARSE = tuple("XXXXYYYY" * 3)


def contrast() -> NestedContrastSet:
    return NestedContrastSet("contrast/x", "fine", "coarse", ("",) * len(FINE), FINE, COARSE)


def test_nested_contrast_against_a_plain_loop() -> None:
    rng = np.random.default_rng(5)
    fine, coarse = unit(rng.standard_normal((24, 6))), unit(rng.standard_normal((24, 6)))
    followed, fine_gains, coarse_gains = [], [], []
    for q in range(24):
        precision = {}
        for name, vectors in (("fine", fine), ("coarse", coarse)):
            others = [i for i in range(24) if i != q]
            near = vectors @ vectors[q]
            precision[name, "mates"] = average_precision_score([FINE[i] == FINE[q] for i in others], near[others])
            distant = [i for i in others if FINE[i] != FINE[q]]
            precision[name, "cousins"] = average_precision_score(
                [COARSE[i] == COARSE[q] for i in distant], near[distant]
            )
        fine_gains.append(precision["fine", "mates"] - precision["coarse", "mates"])
        coarse_gains.append(precision["coarse", "cousins"] - precision["fine", "cousins"])
        followed.append(fine_gains[-1] > LEAST_GAIN and coarse_gains[-1] > LEAST_GAIN)
    found = score(contrast(), {"fine": fine, "coarse": coarse})
    assert found["followed"].value == pytest.approx(np.mean(followed))
    assert found["fine_gain"].value == pytest.approx(np.mean(fine_gains), abs=1e-6)
    assert found["coarse_gain"].value == pytest.approx(np.mean(coarse_gains), abs=1e-6)


def test_nested_contrast_is_one_if_instructions_are_followed() -> None:
    rng = np.random.default_rng(0)
    fine_axis = np.eye(8)[[{"a": 0, "b": 1, "c": 2, "d": 3}[f] for f in FINE]]
    coarse_axis = np.eye(8)[[{"X": 4, "Y": 5}[c] for c in COARSE]]
    noise = 0.2 * rng.standard_normal((24, 8))
    found = score(contrast(), {"fine": unit(fine_axis + noise), "coarse": unit(coarse_axis + noise)})
    assert found["followed"].value == 1.0
    swapped = score(contrast(), {"fine": unit(coarse_axis + noise), "coarse": unit(fine_axis + noise)})
    assert swapped["followed"].value == 0.0


def test_nested_contrast_is_zero_if_instructions_are_ignored() -> None:
    rng = np.random.default_rng(0)
    both = np.eye(8)[[{"a": 0, "b": 1, "c": 2, "d": 3}[f] for f in FINE]]
    both += np.eye(8)[[{"X": 4, "Y": 5}[c] for c in COARSE]]
    good = unit(both + 0.05 * rng.standard_normal((24, 8)))
    assert score(contrast(), {"fine": good, "coarse": good})["followed"].value == 0.0
    # the same with float noise, and if one instruction makes every vector worse
    jitter = unit(good + 1e-7 * rng.standard_normal(good.shape))
    assert score(contrast(), {"fine": good, "coarse": jitter})["followed"].value == 0.0
    worse = unit(good + 0.6 * rng.standard_normal(good.shape))
    assert score(contrast(), {"fine": good, "coarse": worse})["followed"].value <= 0.1


def test_nested_contrast_of_random_vectors_is_about_a_quarter_at_most() -> None:
    rng = np.random.default_rng(2)
    labels = tuple("abcd"[i % 4] for i in range(800))
    data = NestedContrastSet(
        "contrast/x", "f", "c", ("",) * 800, labels, tuple("X" if x in "ab" else "Y" for x in labels)
    )
    fine, coarse = (unit(rng.standard_normal((800, 32))) for _ in range(2))
    assert score(data, {"fine": fine, "coarse": coarse})["followed"].value < 0.3


def test_nested_contrast_needs_texts_with_equal_labels() -> None:
    unpaired = NestedContrastSet("contrast/x", "f", "c", ("",) * 3, ("a", "b", "c"), ("X", "X", "Y"))
    with pytest.raises(InputError, match="increase the limit"):
        score(unpaired, {"fine": angles(0, 1, 2), "coarse": angles(0, 1, 2)})


def test_choice_contrast_by_hand() -> None:
    choices = (
        Choice("q1", ("i", "j"), ("q1 for i", "q1 for j"), (True, False)),
        Choice("q2", ("j", "i"), ("q2 for j", "q2 for i"), (False, True)),
    )
    data = ChoiceContrastSet("contrast/x", choices)
    assert data.blocks["candidates: i"].texts == ("q1 for i", "q1 for j", "q2 for i", "q2 for j")
    assert data.blocks["candidates: j"].texts == ("q1 for j", "q1 for i", "q2 for j", "q2 for i")
    assert data.blocks["queries: j"].role == "query" and data.blocks["candidates: j"].role == "document"
    assert data.blocks["candidates: i"].instruction == "i" and data.blocks["candidates: j"].instruction is None
    vectors = {
        "queries: i": angles(0, 0),
        "candidates: i": angles(10, 40, 10, 40),  # each query is nearer to its own answer
        "queries: j": angles(0, 0),
        "candidates: j": angles(10, 40, 40, 10),  # only the first query is
    }
    found = score(data, vectors)
    assert found["followed"].value == 0.5
    assert found["choices"].value == 0.75


def test_choice_contrast_is_zero_if_instructions_are_ignored() -> None:
    rng = np.random.default_rng(0)
    count = 200
    data = ChoiceContrastSet(
        "contrast/x", tuple(Choice(f"q{n}", ("i", "j"), (f"a{n}", f"b{n}"), (True, True)) for n in range(count))
    )
    queries, first, second = (unit(rng.standard_normal((count, 8))) for _ in range(3))
    vectors = {
        "queries: i": queries,
        "queries: j": queries,
        "candidates: i": np.stack([first, second], axis=1).reshape(-1, 8),
        "candidates: j": np.stack([second, first], axis=1).reshape(-1, 8),
    }
    found = score(data, vectors)
    assert found["followed"].value == 0.0
    assert found["choices"].value == 0.5
    assert found["choices"].interval == (0.5, 0.5)
