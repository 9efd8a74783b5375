"""Measurements that go on where they stopped."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("benchmarks.common", reason="benchmarks/ is not part of this copy")

from benchmarks.antonyms import OPPOSITES
from benchmarks.development import measured
from examples.demo import STEERED, WORDS


def test_what_was_measured_is_kept_when_a_later_model_fails(tmp_path):
    output, asked = tmp_path / "out.json", []

    def measure(model: str) -> dict[str, str]:
        asked.append(model)
        if model == "bad":
            raise ValueError(model)
        return {"of": model}

    with pytest.raises(ValueError, match="bad"):
        measured(["a", "bad", "b"], output, measure)
    assert json.loads(output.read_text()) == {"a": {"of": "a"}}
    measured(["a", "b"], output, measure)
    assert asked == ["a", "bad", "b"] and set(json.loads(output.read_text())) == {"a", "b"}


def test_opposites_are_words_of_the_demo():
    words = set(WORDS.split())
    assert STEERED in OPPOSITES and len(OPPOSITES) == 20
    assert all(set(opposites.split()) <= words for opposites in OPPOSITES.values())
