"""`gircse search` without a question: one question per line, one model for all of them."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from gircse_rag import Embedder
from tests.unit.cli.conftest import Gircse

STORE = ["--collection", "docs", "--path", "store"]


@pytest.fixture(autouse=True)
def stored(gircse: Gircse, tiny_model: list[str], tmp_path: Path) -> None:
    rows = [{"id": word, "text": f"the {word} lives here"} for word in ("tortoise", "albatross", "bison")]
    (tmp_path / "zoo.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    assert gircse("ingest", "zoo.jsonl", *STORE, *tiny_model).code == 0


def documents(text: str) -> list[Any]:
    """The JSON documents in `text`, one after the other."""
    decoder, found, start = json.JSONDecoder(), [], 0
    while text[start:].strip():
        start += len(text[start:]) - len(text[start:].lstrip())
        value, start = decoder.raw_decode(text, start)
        found.append(value)
    return found


def test_each_line_is_answered_as_if_asked_alone(
    gircse: Gircse, tiny_model: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = ["a bird", "a slow animal", "grass"]
    alone = [gircse("search", question, *STORE, "--json", *tiny_model).json for question in questions]
    loads: list[object] = []
    load = Embedder.from_pretrained

    def recording(*arguments: Any, **options: Any) -> Embedder:
        loads.append(arguments)
        return load(*arguments, **options)

    monkeypatch.setattr(Embedder, "from_pretrained", recording)
    result = gircse("search", *STORE, "--json", *tiny_model, stdin="\n\n".join(questions).encode())
    assert (result.code, len(loads)) == (0, 1)
    together = documents(result.out)
    assert [answer["question"] for answer in together] == questions
    for one, other in zip(together, alone, strict=True):
        assert [hit["id"] for hit in one["hits"]] == [hit["id"] for hit in other["hits"]]
        assert [hit["score"] for hit in one["hits"]] == pytest.approx([hit["score"] for hit in other["hits"]], abs=1e-5)


def test_the_instruction_can_be_changed_and_set_back(gircse: Gircse, tiny_model: list[str]) -> None:
    lines = b"a bird\n:instruction  find birds\na bird\n:instruction\na bird\n"
    result = gircse("search", *STORE, "--json", "--instruction", "find animals", *tiny_model, stdin=lines)
    default = gircse("search", "a bird", *STORE, "--json", *tiny_model).json["instruction"]
    assert [answer["instruction"] for answer in documents(result.out)] == ["find animals", "find birds", default]
    assert "instruction: find birds" in result.err


def test_a_bad_question_is_reported_and_the_others_are_answered(gircse: Gircse, tiny_model: list[str]) -> None:
    result = gircse("search", *STORE, "--json", *tiny_model, stdin=b"a bird\na \x07 bell\ngrass\n")
    assert result.code == 1
    assert [answer["question"] for answer in documents(result.out)] == ["a bird", "grass"]
    assert result.err.count("error:") == 1 and "U+0007" in result.err


def test_no_line_is_no_question(gircse: Gircse, tiny_model: list[str]) -> None:
    result = gircse("search", *STORE, "--json", *tiny_model)
    assert (result.code, result.out) == (0, "")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_terminal_has_a_prompt_and_a_history(tiny_model: list[str], tmp_path: Path) -> None:
    import pty

    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "gircse_rag.cli", "search", *STORE, *tiny_model]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=tmp_path)
    os.close(theirs)
    shown = ""

    def wait_for(text: str, count: int) -> None:
        nonlocal shown
        deadline = time.monotonic() + 120
        while shown.count(text) < count:
            assert time.monotonic() < deadline, shown
            if select.select([ours], [], [], 1)[0]:
                shown += os.read(ours, 65536).decode(errors="replace")

    try:
        wait_for("question> ", 1)
        os.write(ours, b"a bird\n")
        wait_for("question> ", 2)
        os.write(ours, b"\x1b[A\n")  # arrow up: the last question again
        wait_for("question> ", 3)
        os.write(ours, b"\x04")  # Ctrl-D
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert shown.count("a bird") >= 2 and shown.count("the albatross lives here") == 2 and "error" not in shown
