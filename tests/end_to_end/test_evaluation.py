"""The real evaluation sets, if they are beside this checkout, and the real model on a few pairs."""

from __future__ import annotations

from pathlib import Path

import pytest

from gircse_rag import Embedder
from gircse_rag.evaluation import Report, evaluate, load_sets
from tests.unit.evaluation.folders import WordVectors

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "eval"
pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the evaluation sets are not at {SHARED}")

# Number of texts per block, as stated in the README of the sets.
SIZES = {
    "retrieval/cranfield": {"queries": 225, "documents": 1398},
    "retrieval/cosqa_dev": {"queries": 500, "documents": 6267},
    "retrieval/xquad_en": {"queries": 1190, "documents": 240},
    "retrieval/covid_faq": {"queries": 209, "documents": 210},
    "sts/covid_question_pairs": {"first": 488, "second": 488},
    "sts/stsb_dev": {"first": 1500, "second": 1500},
    "sts/stsb_test": {"first": 1379, "second": 1379},
    "sts/sts12": {"first": 2358, "second": 2358},
    "sts/sts13": {"first": 1500, "second": 1500},
    "sts/sts14": {"first": 3750, "second": 3750},
    "classification/banking77": {"train": 5059, "test": 3080},
    "classification/clinc150_intent": {"train": 7463, "test": 4500},
    "classification/clinc150_domain": {"train": 7463, "test": 4500},
    "classification/trec_coarse": {"train": 5452, "test": 500},
    "classification/trec_fine": {"train": 5452, "test": 500},
    "clustering/clinc150:domain": {"texts": 4500},
    "clustering/clinc150:intent": {"texts": 4500},
    "clustering/stackoverflow": {"texts": 5000},
    "contrast/clinc150": {"fine": 4500, "coarse": 4500},
    "contrast/trec": {"fine": 500, "coarse": 500},
}
CONTRASTS = ["contrast/clinc150", "contrast/trec"]


def test_every_set_is_read_completely_with_its_instruction() -> None:
    sets = {s.name: s for s in load_sets(SHARED, ["retrieval", "sts", "classification", "clustering", *CONTRASTS])}
    assert {name: {key: len(b.texts) for key, b in s.blocks.items()} for name, s in sets.items()} == SIZES
    domain = "Identify the general domain of a request to a voice assistant"
    assert sets["clustering/clinc150:domain"].blocks["texts"].instruction == domain
    assert {"followed"} == {sets[name].main for name in CONTRASTS}
    assert sets["sts/covid_question_pairs"].main == "average_precision"


def test_a_bag_of_words_gets_plausible_scores_and_follows_no_instruction() -> None:
    report = evaluate(WordVectors(512), SHARED, (0,), limit=60)
    assert set(SIZES) <= {r.name for r in report.sets}
    for result in report.sets:
        score = result.scores[result.main][0]
        assert score.low <= score.value <= score.high
        if result.task == "contrast":
            assert score.value == 0.0, result.name
    assert report["retrieval/xquad_en"].scores["ndcg@10"][0].value > 40
    assert report["sts/stsb_dev"].scores["spearman"][0].value > 30


@pytest.mark.model
def test_the_real_model_at_two_steps(smollm2: Embedder, tmp_path: Path) -> None:
    report = evaluate(smollm2, SHARED, (1, 2), sets=["sts/stsb_dev"], limit=10)
    report.save(tmp_path / "report.json")
    assert Report.load(tmp_path / "report.json") == report
    assert report.fingerprint == smollm2.fingerprint and report.truncated == 0 and 10 < report.texts <= 20
    result = report["sts/stsb_dev"]
    assert result.inputs["first"] == {
        "texts": 10,
        "role": "symmetric",
        "instruction": "Retrieve semantically similar text",
    }
    assert list(result.scores["spearman"]) == [1, 2]
