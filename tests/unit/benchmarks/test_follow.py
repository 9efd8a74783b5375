"""The rows of the stage that teaches to follow instructions."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("benchmarks.common", reason="benchmarks/ is not part of this copy")

from benchmarks import questions
from benchmarks.follow import BROAD, EXACT, Following, _alternating, nested, opposed
from benchmarks.kinds import requests
from benchmarks.questions import Kinds, Nouns
from gircse_rag.training.batches import _answers
from gircse_rag.training.data import Row, Task

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"
needs_data = pytest.mark.skipif(not SHARED.exists(), reason="the training data exists only where we build")
TEXTS = {f"{b}{e}{i}": (b, b + e) for b in "pqr" for e in "xyz" for i in range(12)}


def test_every_text_of_a_class_is_known_as_a_right_answer():
    found = nested(TEXTS, "fine", "coarse", 99, random.Random(0))
    made = [Row(row["task"], row["query"], row["positive"], row["negative"]) for row in found]
    answers = _answers(made, {name: Task(("Find",), symmetric=True) for name in ("fine", "coarse")})
    for row in made:
        level = 1 if row.task == "fine" else 0
        seen = {text for other in made if other.task == row.task for text in (other.query, other.positive)}
        mates = {text for text in seen if TEXTS[text][level] == TEXTS[row.query][level]}
        assert answers[row.task, row.query] - {row.query} == mates - {row.query}
        assert TEXTS[row.negative][0] == TEXTS[row.query][0]
        # wrong for the exact task, and as right as can be for the broad one, to which it must make no difference
        assert (TEXTS[row.negative] == TEXTS[row.query]) == (row.task == "coarse")


def test_a_right_answer_of_the_broad_kind_is_of_another_exact_kind():
    made = nested(TEXTS, "fine", "coarse", 99, random.Random(0))
    pairs = [(TEXTS[row["query"]], TEXTS[row["positive"]]) for row in made if row["task"] == "coarse"]
    assert pairs and all(one[0] == other[0] and one != other for one, other in pairs)


def test_a_broad_kind_of_one_exact_kind_has_rows_all_the_same():
    texts = {f"alone{i}": ("alone", "alone one") for i in range(12)} | TEXTS
    made = [row for row in nested(texts, "fine", "coarse", 99, random.Random(0)) if row["query"].startswith("alone")]
    assert {row["task"] for row in made} == {"fine", "coarse"}
    assert all(row["positive"].startswith("alone") for row in made)
    assert all((row["negative"] is None) == (row["task"] == "fine") for row in made)


def test_only_kinds_that_nest_have_a_temperature_of_their_own():
    trainer = object.__new__(Following)
    trainer.config = SimpleNamespace(temperature=0.02)
    found = {task: trainer.temperature(task) for task in (EXACT, BROAD, "clinc_same_domain", "word_synonym")}
    assert found == {EXACT: 0.05, BROAD: 0.05, "clinc_same_domain": 0.05, "word_synonym": 0.02}


@pytest.mark.parametrize(("sizes", "beside"), [((4, 1), 2), ((3, 2), 0), ((2, 2, 2), 0), ((5,), 4)])
def test_texts_of_one_class_stand_apart_while_others_are_left(sizes, beside):
    parts = [[f"{kind}{i}" for i in range(size)] for kind, size in zip("abc", sizes, strict=False)]
    for seed in range(20):
        path = _alternating(parts, random.Random(seed))
        assert sorted(path) == sorted(text for part in parts for text in part)
        assert sum(one[0] == other[0] for one, other in pairwise(path)) == beside


def test_small_classes_are_left_out_and_larger_ones_have_more_rows():
    sizes = {"ax": 100, "ay": 16, "bz": 9, "bw": 16}
    texts = {f"{kind}{i}": (kind[0], kind) for kind, size in sizes.items() for i in range(size)}
    made = nested(texts, "fine", "coarse", 18, random.Random(0))
    fine = Counter(texts[row["query"]][1] for row in made if row["task"] == "fine")
    assert fine.keys() == {"ax", "ay", "bw"} and fine["ax"] > fine["ay"]


@pytest.fixture
def wordnet(tmp_path):
    """A WordNet of ten nouns in its files' format."""
    hypernyms = {
        "entity": "", "person": "@ entity", "singer": "@ person", "place": "@ entity", "city": "@ place",
        "Paris": "@i city", "animal": "@ entity", "bird": "@ animal", "punk": "@ person", "band": "@ entity",
    }  # fmt: skip
    number = {noun: f"{at:08d}" for at, noun in enumerate(hypernyms)}
    data, index = ["  1 a licence"], ["  1 a licence"]
    for noun, above in hypernyms.items():
        kind, _, to = above.partition(" ")
        pointers = f"001 {kind} {number[to]} n 0000" if above else "000"
        data.append(f"{number[noun]} 03 n 01 {noun} 0 {pointers} | its meaning")
        index.append(f"{noun.lower()} n 1 {'1 @ ' if above else '0 '}1 1 {number[noun]}")
    (tmp_path / "data.noun").write_text("\n".join(data))
    (tmp_path / "index.noun").write_text("\n".join(index))
    return Nouns(tmp_path)


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("Who painted it?", ("human", "person")),
        ("How many wings has a bird?", ("number", "count")),
        ("What does NASA stand for?", ("abbreviation", "expansion")),
        ("What city is the singer from?", ("place", "city")),
        ("What punk band played there?", ("human", "band")),
        ("Which birds cannot fly?", ("thing", "animal")),
        ("What is the name of the city?", ("place", "city")),
        ("This singer was born in Paris.", ("human", "person")),
        ("Finish the sentence.", None),
    ],
)
def test_what_a_question_asks_for(wordnet, monkeypatch, question, kind):
    nouns = {"band": ("human", ["band"]), "city": ("place", ["city"]), "animal": ("thing", ["animal"])}
    nouns["person"] = ("human", ["person"])
    rules = {name: {"broad": broad, "nouns": given} for name, (broad, given) in nouns.items()}
    monkeypatch.setitem(questions.RULES, "kinds", rules)
    assert Kinds(wordnet)(question) == kind


def test_instances_are_not_kinds(wordnet):
    assert wordnet.members("place", instances=True) == ["Paris"]
    assert wordnet.members("place") == ["city"]


@needs_data
def test_the_pairs_of_both_tasks_give_ten_domains():
    found = requests(SHARED)
    assert len({domain for domain, _ in found.values()}) == 10
    domains = {}
    for domain, intent in found.values():
        assert domains.setdefault(intent, domain) == domain


@needs_data
def test_a_negative_answers_another_task_and_not_its_own():
    answers = {}
    for row in questions.training_rows(SHARED, "wordnet"):
        answers.setdefault(row["query"], {}).setdefault(row["task"], set()).add(row["positive"])
    for row in opposed(SHARED, "word", 30_000, random.Random(0)):
        own = answers[row["query"]][row["task"]]
        assert row["positive"] in own and row["negative"] not in own
        assert any(row["negative"] in wrong for task, wrong in answers[row["query"]].items() if task != row["task"])
