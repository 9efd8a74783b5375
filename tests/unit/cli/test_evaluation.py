from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from gircse_rag.evaluation import Report
from gircse_rag.install_hint import install_command
from tests.unit.cli.conftest import Gircse
from tests.unit.evaluation import folders


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    return folders.whole(tmp_path)


def test_eval_scores_the_sets_at_every_k(gircse: Gircse, sets: Path, tiny_model: list[str]) -> None:
    chosen = ["--sets", "sts,retrieval/planes", "--steps", "1,3", *tiny_model]
    result = gircse("eval", sets, *chosen, "--output", "report.json", "--plot", "figures/scores.png", "--json")
    assert result.code == 0
    assert [one["name"] for one in result.json["sets"]] == ["retrieval/planes", "sts/graded", "sts/same"]
    assert result.json["steps"] == [1, 3] and result.json["model"] == tiny_model[1]
    assert Report.load("report.json").to_dict() == Report.from_dict(result.json).to_dict()
    assert Path("figures/scores.png").read_bytes().startswith(b"\x89PNG")
    assert result.err == "note: wrote report.json\nnote: wrote figures/scores.png\n"
    table = gircse("eval", sets, *chosen)
    assert (table.code, table.err) == (0, "")
    assert "sts/graded" in table.out and "K=3" in table.out and "mean of 3" in table.out


def test_earlier_reports_go_into_the_same_plot(gircse: Gircse, sets: Path, tiny_model: list[str]) -> None:
    chosen = ["--sets", "sts", "--steps", "1,3", *tiny_model]
    assert gircse("eval", sets, *chosen, "--output", "before.json").code == 0
    before = Report.load("before.json").to_dict()
    Path("before.json").write_text(json.dumps({**before, "model": "before training"}))
    result = gircse("eval", sets, *chosen, "--compare", "before.json", "--plot", "both.svg")
    assert (result.code, result.err) == (0, "note: wrote both.svg\n")
    assert "before training" in Path("both.svg").read_text()
    alone = gircse("eval", sets, *chosen, "--compare", "before.json")
    assert alone.code == 2 and "add --plot FILE" in alone.err
    Path("before.json").write_text("{}")
    bad = gircse("eval", sets, *chosen, "--compare", "before.json", "--plot", "both.svg", "--model", "no-such-model")
    assert bad.code == 5 and "before.json" in bad.err, "a bad report fails before a model is loaded"


def test_eval_scores_a_pooling_baseline_without_steps(gircse: Gircse, sets: Path, tiny_folder: Path) -> None:
    rows = [{"task": "find", "query": f"way {i}", "positive": f"it's {i}", "negative": "no"} for i in range(4)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("named.json").write_text(json.dumps({"find": {"instruction": "Find it", "symmetric": False}}))
    config = {"output": "run", "data": "rows.jsonl", "tasks": "named.json", "rows": 4, "batch_size": 4, "rank": 2}
    chosen = {"pooling": "mean", "model": str(tiny_folder), "dtype": "float32", "device": "cpu"}
    Path("config.yaml").write_text(json.dumps({**config, **chosen}))
    assert gircse("train", "config.yaml").code == 0
    result = gircse("eval", sets, "--sets", "sts,retrieval/planes", "--model", "run/checkpoint", "--json")
    assert (result.code, result.err.count("error")) == (0, 0), result.err
    assert (result.json["steps"], result.json["model"]) == ([0], "run/checkpoint")
    assert (
        "trained without refinement (pooling: last or mean): --steps, --backend and --device do not apply" in result.err
    )
    refused = gircse("embed", "a text", "--model", "run/checkpoint")
    assert (refused.code, refused.out) == (3, "") and "a baseline trained with pooling 'mean'" in refused.err


def test_limit_takes_a_sample_and_reports_it(gircse: Gircse, sets: Path, tiny_model: list[str]) -> None:
    result = gircse("eval", sets, "--sets", "retrieval", "--steps", "2", "--limit", "1", *tiny_model)
    assert result.code == 0 and "samples of 1 per set" in " ".join(result.out.split())


def test_a_terminal_sees_progress(
    gircse: Gircse, sets: Path, tiny_model: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes stderr for a terminal
    monkeypatch.setenv("COLUMNS", "100")
    result = gircse("eval", sets, "--sets", "retrieval,sts/graded", "--steps", "2", "--json", *tiny_model)
    assert result.json["texts"] == 9  # 2 judged queries, 3 documents that are not empty, 4 different sentences
    assert "embedding" in result.err and "9/9" in result.err


def test_bad_folders_and_sets_are_refused_before_a_model_is_loaded(gircse: Gircse, sets: Path) -> None:
    for arguments, message in (
        (["nowhere"], "nowhere is not a directory"),
        ([sets, "--sets", "sts/nothing"], "sts/nothing"),
    ):
        result = gircse("eval", *arguments, "--model", "no-such-model")
        assert (result.code, result.out) == (5, "")
        assert message in result.err and result.err.count("\n") == 1
    assert gircse("eval", sets, "--model", "no-such-model").code == 3


@pytest.mark.parametrize("module", ["sklearn", "pytrec_eval", "matplotlib"])
def test_without_the_extra_the_error_names_it(
    gircse: Gircse, sets: Path, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    result = gircse("eval", sets, "--plot", "scores.png")
    assert (result.code, result.out) == (3, "")
    assert install_command("eval") in result.err


def test_a_report_that_cannot_be_written_is_still_shown(
    gircse: Gircse, sets: Path, tiny_model: list[str], tmp_path: Path
) -> None:
    (tmp_path / "taken").write_text("a file")
    result = gircse("eval", sets, "--sets", "sts/graded", "--output", "taken/report.json", *tiny_model)
    assert result.code == 5 and "could not write taken/report.json" in result.err
    assert "sts/graded" in result.out
