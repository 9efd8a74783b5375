from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from gircse_rag.install_hint import install_command
from tests.unit.cli.conftest import Gircse

KEYS = {
    "output": "run",
    "data": "rows.jsonl",
    "tasks": "tasks.json",
    "rows": 24,
    "batch_size": 6,
    "steps": 2,
    "rank": 2,
}


@pytest.fixture
def config(tmp_path: Path, tiny_folder: Path) -> Path:
    """Rows, tasks and a config for the tiny model, in the folder where commands run."""
    rows = [
        {"task": "find", "query": f"way {i}", "positive": f"it's {i} of the world", "negative": None if i % 2 else "no"}
        for i in range(12)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tasks.json").write_text(json.dumps({"find": {"instruction": "Find it", "symmetric": False}}))
    return write_config(tmp_path / "config.yaml", model=str(tiny_folder))


def write_config(path: Path, **changes: object) -> Path:
    """Write or change a config file, as JSON, which is valid YAML."""
    settings = (
        json.loads(path.read_text()) if path.exists() else KEYS | {"rank": 2, "dtype": "float32", "device": "cpu"}
    )
    path.write_text(json.dumps({**settings, **changes}))
    return path


def test_train_writes_a_model_that_the_other_commands_accept(gircse: Gircse, config: Path, tiny_folder: Path) -> None:
    result = gircse("train", config, "--json")
    assert (result.code, result.err) == (0, "")
    summary = result.json
    assert (summary["checkpoint"], summary["rows_seen"], summary["rows_before"], summary["batches"]) == (
        "run/checkpoint",
        24,
        0,
        4,
    )
    assert summary["first_loss"] > 0 and summary["last_loss"] > 0
    vectors = [
        gircse("embed", "it's 3", "--json", "--steps", "2", "--model", model, "--device", "cpu", "--dtype", "float32")
        for model in (summary["checkpoint"], str(tiny_folder))
    ]
    assert vectors[0].json["embeddings"] != vectors[1].json["embeddings"]


def test_the_same_command_resumes_a_run(gircse: Gircse, config: Path) -> None:
    assert gircse("train", config).code == 0
    again = gircse("train", config, "--json")
    assert (again.code, again.json["rows_before"], again.json["batches"]) == (0, 24, 0)
    assert "note: run/state: 24 of 24 rows were already seen; only the checkpoint is left" in again.err
    more = gircse("train", write_config(config, rows=48))
    assert more.code == 0 and "24 of 48 rows were already seen; resuming" in more.err
    assert "run/checkpoint: 48 rows seen, 24 of them" in more.out and "loss " in more.out
    other = gircse("train", write_config(config, seed=1))
    assert (other.code, other.out) == (3, "") and "made with another seed" in other.err


def test_the_summary_agrees_with_the_config(gircse: Gircse, config: Path) -> None:
    result = gircse("train", write_config(config, rows=16, batch_size=5, max_length=60))
    assert result.code == 0 and "run/checkpoint: 16 rows seen, 16 of them now" in result.out
    assert "rows per batch: 4; 0 of 41 texts cut at max_length (60 tokens)" in result.out
    more = gircse("train", write_config(config, rows=21, max_length=60), "--json")
    assert (more.json["rows_seen"], more.json["batches"]) == (21, 2)
    short = gircse("train", write_config(config, output="other", rows=21, max_length=12))
    assert short.err.startswith("warning: texts are cut at 12 tokens (max_length); the first is the query of a row")
    assert "rows per batch: 1 to 4; " in short.out and " texts cut at max_length (12 tokens)" in short.out


def test_a_terminal_sees_progress(gircse: Gircse, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes stderr for a terminal
    monkeypatch.setenv("COLUMNS", "100")
    result = gircse("train", config, "--json")
    assert result.json["batches"] == 4
    assert "training" in result.err and "24/24" in result.err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rat": 1}, "unknown key learning_rat in the training config; known: adapter"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast' in the training config; it must be float"),
        ({"data": "missing.jsonl"}, "missing.jsonl cannot be read"),
        ({"tasks": "rows.jsonl"}, "rows.jsonl is not a valid tasks file"),
    ],
)
def test_bad_input_exits_5_and_writes_nothing(
    gircse: Gircse, config: Path, change: dict[str, object], message: str
) -> None:
    result = gircse("train", write_config(config, **change))
    assert (result.code, result.out) == (5, "")
    assert result.err.startswith("error: ") and message in result.err and result.err.count("\n") == 1
    assert not Path("run").exists()


def test_a_missing_config_and_a_missing_model_are_errors(gircse: Gircse, config: Path) -> None:
    result = gircse("train", "nowhere.yaml")
    assert result.code == 5 and "nowhere.yaml cannot be read" in result.err
    result = gircse("train", write_config(config, model="./nowhere"))
    assert result.code == 3 and "nowhere" in result.err


def test_without_the_extra_the_error_names_it(gircse: Gircse, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    result = gircse("train", config)
    assert (result.code, result.out) == (3, "")
    assert install_command("train") in result.err


def test_an_output_that_cannot_be_written_exits_5(gircse: Gircse, config: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    result = gircse("train", write_config(config, output="taken"))
    assert (result.code, result.out) == (5, "") and "could not write to taken" in result.err
