"""Texts held out of training, and whether their neighbours follow an instruction."""

from __future__ import annotations

from collections import Counter

import pytest

pytest.importorskip("benchmarks.common", reason="benchmarks/ is not part of this copy")

from benchmarks import follow, kinds
from benchmarks.follow import Plan, mixture
from benchmarks.kinds import DOMINANT, HELD_REQUESTS, MOST, REST, development, held, measure

QUESTIONS = {
    f"{broad} {kind} {i}?": (broad, kind)
    for broad, most in DOMINANT.items()
    for kind in (most, f"{most} another", f"{most} third")
    for i in range(90)
}
ASKED = {f"{area} {intent} {i}": (area, f"{area} {intent}") for area in "ab" for intent in "xyz" for i in range(100)}


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A folder whose questions and requests are those above, and which has no other rows."""
    for module in (kinds, follow):
        monkeypatch.setattr(module, "labelled", lambda *_: dict(QUESTIONS))
        monkeypatch.setattr(module, "requests", lambda _: dict(ASKED))
    monkeypatch.setattr(follow, "training_rows", lambda *_: [])
    names = {*follow.KEPT, *follow.ROWS} - {follow.SIMILAR}
    tasks = ", ".join(f'"{name}": {{"source": "none"}}' for name in sorted(names))
    (tmp_path / "tasks.json").write_text(f"{{{tasks}}}")
    yield tmp_path
    held.cache_clear()


def test_one_exact_kind_is_most_of_each_broad_one(data):
    sets = development(data, data)
    assert sets == development(data, data)
    counts = Counter(sets["questions"].values())
    assert {kind: counts[kind] for kind in DOMINANT.items()} == dict.fromkeys(DOMINANT.items(), MOST)
    assert Counter(broad for broad, _ in sets["questions"].values()) == dict.fromkeys(DOMINANT, MOST + REST)
    assert len(sets["requests"]) == HELD_REQUESTS


def test_no_row_has_a_text_that_is_held_out(data, monkeypatch):
    out = held(data, data)
    assert len(out) == HELD_REQUESTS + len(DOMINANT) * (MOST + REST)
    offered: set[str] = set()

    def paths(texts, *others):
        offered.update(texts)
        return follow_nested(texts, *others)

    follow_nested = follow.nested
    monkeypatch.setattr(follow, "nested", paths)
    made = mixture(Plan(requests=50, questions=50), data, data, None, seed=1)
    assert offered == {*QUESTIONS, *ASKED} - out, "left out before paths are laid, which it would break"
    assert {row["task"] for row in made} == {*follow.REQUESTS, *follow.QUESTIONS}
    assert out.isdisjoint(text for row in made for text in (row["query"], row["positive"], row["negative"]))


def test_rows_of_other_tasks_are_held_out_as_well(data, monkeypatch):
    out = min(held(data, data))
    rows = [{"task": follow.KEPT[0], "query": text, "positive": "p", "negative": None} for text in (out, "another")]
    monkeypatch.setattr(follow, "training_rows", lambda *_: rows)
    monkeypatch.setattr(follow, "KEPT", follow.KEPT[:1])
    monkeypatch.setattr(follow, "ROWS", {})
    assert [row["query"] for row in mixture(Plan(kept=2), data, data, None, seed=1)] == ["another"]


def test_a_model_is_asked_in_wordings_of_training_and_in_others(tiny_folder):
    kinds_of = {f"{broad} {exact} {i}": (broad, exact) for broad in "pq" for exact in "mn" for i in range(3)}
    found = measure(str(tiny_folder), {"questions": kinds_of, "requests": kinds_of})
    assert {name: set(by_wording) for name, by_wording in found.items()} == {
        "questions": {"trained", "unseen"},
        "requests": {"trained"},
    }
    shares = [share for by_wording in found.values() for by_steps in by_wording.values() for share in by_steps.values()]
    assert all(0 <= share <= 100 for share in shares) and len(shares) == 9
    assert found["questions"]["trained"] != found["questions"]["unseen"]
