"""The wordings that the contrasted tasks are trained with."""

from __future__ import annotations

import json

from benchmarks.steer import PLAN, tasks
from benchmarks.training_h100.scoring import UNSEEN


def test_many_wordings_none_of_them_one_that_measures(tmp_path):
    given = {name: {"instruction": f"Of training: {name}", "rows": 9} for name in [*PLAN, "medical_qa"]}
    (tmp_path / "tasks.json").write_text(json.dumps(given))
    worded = {name: task["instruction"] for name, task in tasks(tmp_path).items()}
    assert worded.keys() == given.keys()
    for name, wordings in worded.items():
        assert wordings[0] == f"Of training: {name}"  # the one that `gircse eval` takes
        many = bool(PLAN.get(name, {}).get("phrases"))
        assert len(wordings) == (29 if many else 5)
        assert len(set(wordings)) >= len(wordings) - 1  # "Retrieve a narrower term" comes twice, and did in training
        assert UNSEEN.get(name) not in wordings
        assert all(wording[0].isupper() for wording in wordings)
    assert "Given a request, find requests with an identical purpose" in worded["clinc_same_intent"]


def test_a_wording_that_measures_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setitem(UNSEEN, "word_synonym", "Find a synonym")
    (tmp_path / "tasks.json").write_text(json.dumps({"word_synonym": {"instruction": "Of training"}}))
    wordings = tasks(tmp_path)["word_synonym"]["instruction"]
    assert "Find a synonym" not in wordings and len(wordings) == 28
