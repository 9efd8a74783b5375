"""`gircse adapt` and `gircse compare-instructions`."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from tests.disk import SmallDisks
from tests.processes import interruptible
from tests.unit.adaptation import data
from tests.unit.cli.conftest import Gircse
from tests.unit.cli.test_app import GIRCSE

pytestmark = pytest.mark.slow  # trains a model

STORE = ["--collection", "notes", "--path", "store"]


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    data.write_notes(tmp_path / "notes")
    data.write_pairs(tmp_path / "pairs.csv")
    return tmp_path


@pytest.fixture
def command(tiny_folder: Path) -> list[str]:
    options = ["--out", "out", "--model", str(tiny_folder), "--device", "cpu", "--dtype", "float32"]
    return ["adapt", "notes", "--pairs", "pairs.csv", *options]


def test_adapt_writes_a_model_that_the_other_commands_accept(gircse: Gircse, inputs: Path, command: list[str]) -> None:
    result = gircse(*command, "--steps", "1,2", "--instruction", "manual")
    assert result.code in (0, 1), result.err
    assert "held-out questions, x 100" in result.out and "hybrid" in result.out
    for phase in ("note: embedding chunks", "note: training", "note: the report is in out"):
        assert phase in result.err
    again = gircse(*command, "--steps", "1,2", "--instruction", "manual", "--json")
    assert again.json["counts"]["held_out"] == 16 and again.json["changed"] == (result.code == 0)
    if result.code == 0:
        embedded = gircse("embed", "a pump", "--model", "out", "--device", "cpu", "--dtype", "float32", "--json")
        assert embedded.json["instruction"].startswith("Given the title of a section")


def test_pairs_that_are_too_few_exit_5(gircse: Gircse, inputs: Path, command: list[str]) -> None:
    (inputs / "pairs.csv").write_text("question,document\nwhy?,clean-pump.txt\nhow?,gone.txt\n")
    result = gircse(*command)
    assert (result.code, result.out) == (5, "")
    assert "1 different questions" in result.err and "at least 40" in result.err and "gone.txt" in result.err


def test_without_pairs_it_says_how_to_make_them(gircse: Gircse, inputs: Path, command: list[str]) -> None:
    at = command.index("--pairs")
    without = command[:at] + command[at + 2 :]
    result = gircse(*without)
    assert result.code == 5 and "--self-pairs" in result.err
    too_few = gircse(*without, "--self-pairs")  # notes of one sentence
    assert too_few.code == 5 and "add documents, or give pairs" in too_few.err


@pytest.mark.slow
def test_ctrl_c_exits_130_and_the_same_command_goes_on(gircse: Gircse, inputs: Path, command: list[str]) -> None:
    process = interruptible([*GIRCSE, *command], cwd=inputs)
    log = inputs / "out" / ".adapt" / "training" / "log.jsonl"
    while not log.exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert (inputs / "out" / ".adapt").exists() and not (inputs / "out" / "adapt.json").exists()
    assert gircse(*command).code in (0, 1)
    assert (inputs / "out" / "adapt.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("size", ["16k", "200k", "400k"])
def test_a_full_disk_is_an_error_and_the_same_command_goes_on(
    gircse: Gircse, inputs: Path, command: list[str], small_disks: SmallDisks, size: str
) -> None:
    disk = small_disks.mount(size)
    command[command.index("out")] = str(disk / "out")
    result = gircse(*command)
    assert result.code in (3, 5) and "could not" in result.err, result.err
    small_disks.resize(disk, "50m")
    assert gircse(*command).code in (0, 1)
    assert (disk / "out" / "adapt.json").exists()


def test_compare_instructions(gircse: Gircse, inputs: Path, tiny_model: list[str]) -> None:
    assert gircse("ingest", "notes", *STORE, *tiny_model).code == 0
    rows = [*data.rows(), {"question": "and passages?", "passage": data.notes()["test-motor.txt"]}, {"question": "x"}]
    (inputs / "pairs.json").write_text(json.dumps(rows))
    arguments = ["compare-instructions", "pairs.json", *STORE, *tiny_model]
    result = gircse(*arguments, "--instruction", "manual", "--instruction", "Find the note", "--json")
    assert result.code == 0 and "has no answer" in result.err
    assert result.json["questions"] == 65
    found = {row["instruction"]: row for row in result.json["instructions"]}
    assert len(found) == 3 and None in found and "Find the note" in found
    assert any(name and name.startswith("Given the title") for name in found)
    assert found[None]["lead"] == {"value": 0, "low": 0, "high": 0}
    best = max(found.values(), key=lambda row: row["ndcg@10"]["value"])
    assert result.json["best"] == best["instruction"]
    table = gircse(*arguments)
    assert "none: the bare question" in table.out and "65 questions" in table.out


def test_compare_instructions_needs_questions(gircse: Gircse, inputs: Path, tiny_model: list[str]) -> None:
    (inputs / "pairs.csv").write_text("question,document\nwhy?,\n")
    result = gircse("compare-instructions", "pairs.csv", *STORE, *tiny_model)
    assert result.code == 5 and "no question with an answer" in result.err
