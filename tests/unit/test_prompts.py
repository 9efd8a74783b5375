"""Named instructions: what is a name, what is nearly one, and what is neither."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gircse_rag.errors import InputError
from gircse_rag.prompts import INSTRUCTIONS, resolve_instruction
from gircse_rag.training.data import read_tasks
from tests.stand_in import StandIn


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_a_name_stands_for_its_sentence(name: str) -> None:
    embedder = StandIn(max_length=512)
    embedder.embed_queries(["x"], instruction=name)
    embedder.embed(["x"], "symmetric", name)
    assert {query.instruction for query in embedder.words.queries} == {INSTRUCTIONS[name]}
    assert resolve_instruction(INSTRUCTIONS[name]) == INSTRUCTIONS[name]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("python-code", "python_code"),
        ("pythoncode", "python_code"),
        ("pyton_code", "python_code"),
        ("WEB_SEARCH", "web_search"),
        (" web_search ", "web_search"),
        ("definitions", "definition"),
        ("same-question-type", "same_question_type"),
    ],
)
def test_a_text_that_is_nearly_a_name_is_asked_about(text: str, name: str) -> None:
    embedder = StandIn(max_length=512)
    with pytest.raises(InputError, match=rf"did you mean '{name}'\?"):
        embedder.embed_queries(["x"], instruction=text)
    assert embedder.words.queries == []


@pytest.mark.parametrize(
    "text",
    [
        "Definition.",
        "find",
        "medicine",
        "code",
        "Translate",
        "retrieve_documents",
        "find python code",
        "Python code",
        "Same topic",
        "Given a web search query, retrieve the page",
        "定義",
    ],
)
def test_any_other_text_is_embedded_as_it_is(text: str) -> None:
    assert resolve_instruction(text) == text


def test_tasks_of_a_training_run_take_names(tmp_path: Path) -> None:
    (tmp_path / "tasks.json").write_text(json.dumps({"code": {"instruction": ["python_code", "Find code"]}}))
    tasks = read_tasks(tmp_path / "tasks.json")
    assert tasks["code"].instructions == (INSTRUCTIONS["python_code"], "Find code")
    (tmp_path / "tasks.json").write_text(json.dumps({"code": {"instruction": "python-code"}}))
    with pytest.raises(InputError, match="did you mean 'python_code'"):
        read_tasks(tmp_path / "tasks.json")
