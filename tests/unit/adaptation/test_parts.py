"""The parts of a run: BM25, the pool, hard negatives, probes, wordings, the plan, scores and stored vectors."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from gircse_rag.adaptation.candidates import NEGATIVES, choose_pool, mine
from gircse_rag.adaptation.corpus import Corpus, Question
from gircse_rag.adaptation.lexical import Lexical
from gircse_rag.adaptation.plan import SMALLEST_POOL, Plan, choose_settings, pool_size
from gircse_rag.adaptation.probes import make_probes, make_rehearsal, rank_correlation
from gircse_rag.adaptation.scoring import fuse, mean_ndcg, score
from gircse_rag.adaptation.split import Split
from gircse_rag.adaptation.vectors import PART, StoredVectors
from gircse_rag.adaptation.wordings import wordings
from gircse_rag.errors import CheckpointError, InputError
from gircse_rag.training.config import TrainConfig


def ask(text: str, *chunks: int, by_document: bool = False) -> Question:
    return Question(text, None, frozenset(chunks), frozenset(chunks), by_document)


def test_bm25_prefers_rare_shared_words() -> None:
    lexical = Lexical(["the green apple", "the green pear", "the red brick"])
    scores = lexical.scores("green pear")
    assert scores.argmax() == 1 and scores[2] == 0
    assert not lexical.scores("zebra").any() and not lexical.scores("?!").any()
    assert not Lexical(["?!", "..."]).scores("green").any()


def test_the_pool_keeps_answers_and_what_looks_like_them() -> None:
    texts = [f"box {i} holds {'apples' if i < 30 else 'tools'} of kind {i}" for i in range(300)]
    corpus = Corpus([str(i) for i in range(300)], texts, np.arange(300), [], [])
    questions = [ask("where are the apples?", 299), ask("tools of kind 40", 40), ask("kind 50", 50)]
    split = Split([2], [1], [0], "document")
    pool = choose_pool(corpus, questions, split, Lexical(texts), 60)
    assert len(pool) == 60 == len(set(pool)) and pool == sorted(pool) and {299, 40, 50} <= set(pool)
    assert sum(i < 30 for i in pool) >= 15
    assert choose_pool(corpus, questions, split, Lexical(texts), 1_000) == list(range(300))


def test_hard_negatives_are_near_but_no_answers() -> None:
    dense = np.array([0.8, 0.9, 0.79, 0.7, 0.6, 0.5, 0.4, 0.3])
    lexical = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 5.0])
    pool = np.arange(10, 18)
    positive, negatives = mine(ask("?", 10, 17), dense, lexical, pool, frozenset({13}))
    # 11 and 12 score like the answer 10 and may be answers; 13 is held out; 14 is the best wrong one
    assert positive == 10 and negatives == [15, 16]
    positive, negatives = mine(ask("?", 14), dense, lexical, pool, frozenset())
    assert positive == 14 and negatives == [16, 17]
    assert mine(ask("?", 10), dense[:1], lexical[:1], pool[:1], frozenset()) == (10, [])
    assert len(negatives) <= NEGATIVES


def test_probes_and_rehearsal_share_no_sentence() -> None:
    probes, rows = make_probes(), make_rehearsal(1_000)
    assert Counter(probes.grades) == {0: 24, 1: 24, 2: 24, 3: 24}
    assert len(rows) == 288 == len(set(rows))
    rehearsed = {text for row in rows for text in (row.query, row.positive, row.negative)}
    assert not rehearsed & {*probes.first, *probes.second}
    assert all(text[0].isupper() or text[0].isdigit() for text in (*probes.first, *probes.second))
    assert not any("{" in text for text in (*probes.first, *rehearsed))  # type: ignore[operator]
    assert make_probes() == probes and len(make_rehearsal(10)) == 10


def test_grades_order_the_probes() -> None:
    grades = [0, 1, 2, 3]
    assert rank_correlation(np.array([0.1, 0.4, 0.5, 0.9]), grades) == pytest.approx(1)
    assert rank_correlation(np.array([0.9, 0.5, 0.4, 0.1]), grades) == pytest.approx(-1)


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("Given a question, retrieve passages that answer it", "For a question, find passages that answer it"),
        ("Retrieve notes about the same machine", "Look up notes about the same machine"),
        ("What the shift needs", "Task: what the shift needs"),
    ],
)
def test_wordings_begin_with_the_instruction(instruction: str, expected: str) -> None:
    made = wordings(instruction)
    assert made[0] == instruction and expected in made and 3 < len(made) <= 8 and len(set(made)) == len(made)


def settings(
    minutes: float | None, questions: int = 120, seconds_per_chunk: float = 0.1, *, fresh: bool = False
) -> Plan:
    return choose_settings(
        Plan("d", 500, seconds_per_chunk),
        questions=questions,
        max_length=512,
        fresh=fresh,
        chunk_tokens=[100] * 500,
        question_tokens=[12] * 200,
        minutes=minutes,
        spent=60,
    )


def test_settings_follow_the_data_and_the_time() -> None:
    assert settings(None).rows == 120 * 6 and settings(None).train_seconds is None
    ten, fast = settings(10), settings(10, seconds_per_chunk=0.01)
    assert ten.rows < fast.rows == settings(None).rows
    assert ten.train_seconds == 600 - 60 - 50 - 30
    assert ten.learning_rate >= settings(None).learning_rate  # fewer steps take larger ones
    assert settings(10, questions=2_000).batch_size > settings(10, questions=30).batch_size
    assert settings(0.5).rows >= 2 * settings(0.5).batch_size  # even without time, a few steps
    assert settings(None, questions=200).batch_size == 32


def test_a_fresh_adapter_trains_as_in_the_paper() -> None:
    fresh, trained = settings(10, fresh=True), settings(10)
    assert (fresh.temperature, fresh.symmetric) == (TrainConfig.temperature, TrainConfig.symmetric) == (0.02, False)
    assert (trained.temperature, trained.symmetric) == (0.04, True)


def test_the_pool_follows_the_time() -> None:
    assert pool_size(3_000, 0.1, None) == 3_000 and pool_size(3_000, 0.1, 10) == 900
    assert pool_size(3_000, 10, 1) == SMALLEST_POOL and pool_size(50, 10, 1) == 50


def test_a_plan_is_kept_for_its_own_data(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    assert Plan.load(path, "d") is None
    settings(10).save(path)
    assert Plan.load(path, "d") == settings(10)
    with pytest.raises(CheckpointError, match="other documents, pairs or options"):
        Plan.load(path, "e")
    path.write_text("{")
    with pytest.raises(CheckpointError, match="is damaged"):
        Plan.load(path, "d")
    with pytest.raises(InputError, match="could not write"):
        settings(10).save(path / "below" / "a file")


def test_documents_rank_by_their_best_chunk_and_count_once() -> None:
    owners = np.array([0, 0, 0, 1, 2])
    scores = np.array([[0.9, 0.8, 0.7, 0.6, 0.5]])
    by_document = score([ask("?", 1, by_document=True)], scores, np.arange(5), owners)
    assert by_document.ranks.tolist() == [2]
    assert by_document.interval("mrr@10").value == 0.5 and by_document.interval("hit@1").value == 0
    assert by_document.interval("ndcg@10").value == pytest.approx(1 / np.log2(3))
    by_chunk = score([ask("?", 3)], scores, np.arange(5), owners)
    assert by_chunk.ranks.tolist() == [4]
    part = score([ask("?", 2, by_document=True)], scores[:, [0, 4]], np.array([0, 4]), owners)
    assert part.ranks.tolist() == [2]


def test_gains_are_paired() -> None:
    owners = np.arange(3)
    questions = [ask("?", 0) for _ in range(20)]
    low = score(questions, np.tile([0.1, 0.2, 0.3], (20, 1)), owners, owners)
    high = score(questions, np.tile([0.3, 0.2, 0.1], (20, 1)), owners, owners)
    gain = high.gain(low, "hit@1")
    assert (gain.value, gain.low, gain.high) == (1, 1, 1) and low.gain(low, "hit@1").value == 0


def test_fusion_uses_ranks_and_only_shared_words() -> None:
    dense, lexical = np.array([[0.9, 0.8, 0.1]]), np.array([[0.0, 3.0, 0.0]])
    assert fuse(dense, lexical).argmax() == 1
    assert fuse(dense, np.zeros_like(lexical)).argsort().tolist() == [[2, 1, 0]]


def test_mean_ndcg() -> None:
    relevant = np.array([[True, False], [True, False]])
    assert mean_ndcg(np.array([[1.0, 0.0], [0.0, 1.0]]), relevant) == pytest.approx((1 + 1 / np.log2(3)) / 2)


def test_stored_vectors_are_computed_once_per_model(tmp_path: Path) -> None:
    calls: list[int] = []

    def embed(texts: list[str], role: str, instruction: str | None, steps: tuple[int, ...]) -> np.ndarray:
        calls.append(len(texts))
        return np.array([[[len(text), k] for k in steps] for text in texts], dtype=np.float32)

    texts = ["x" * i for i in range(1, PART + 9)]
    counted: list[int] = []
    first = StoredVectors(tmp_path, embed, "model", counted.append).of(texts, "document", steps=(1, 2))
    assert first.shape == (len(texts), 2, 2) and calls == [PART, 8] == counted
    again = StoredVectors(tmp_path, embed, "model")
    assert np.array_equal(again.of(texts, "document", steps=(1, 2)), first) and len(calls) == 2
    again.of(texts[:1], "query", "Find it", steps=(1, 2))
    StoredVectors(tmp_path, embed, "other").of(texts[:1], "document", steps=(1, 2))
    assert len(calls) == 4
    part = max(tmp_path.iterdir(), key=lambda path: path.stat().st_size)
    part.write_bytes(part.read_bytes()[:100])  # a damaged part is computed again
    assert np.array_equal(again.of(texts, "document", steps=(1, 2)), first) and len(calls) == 5
