"""`gircse doctor --deep`: its report, its exit code, and what the report must not contain."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gircse_rag.selfcheck import congruence, samples
from tests.unit.cli.conftest import Gircse


def deep(folder: Path, *more: str) -> tuple[str, ...]:
    return ("doctor", "--model", str(folder), "--deep", "--device", "cpu", *more)


def test_the_report_can_be_filed(
    gircse: Gircse, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has figures and versions, and neither texts nor folders, hosts and keys."""
    monkeypatch.setenv("HOME", str(tiny_folder.parent))
    monkeypatch.setenv("QDRANT_API_KEY", "S3CRET")
    monkeypatch.setenv("GIRCSE_API_KEY", "S3CRET")
    result = gircse(*deep(tiny_folder, "--json", "--output", str(tmp_path / "report.json")))
    assert result.code == 0, result.err
    report = result.json
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert set(report) == {"ok", "versions", "doctor", "device", "model", "checks"}
    assert report["ok"] is True and report["model"] == "a local folder" and report["device"]["type"] == "cpu"
    assert report["versions"]["torch"] and report["doctor"]["model"] == "ok"
    checks = {check["name"]: check for check in report["checks"]}
    assert checks["congruence, float32"]["state"] == "passed" and checks["speed"]["figures"]
    assert checks["graph"] == checks["graph"] | {"state": "skipped", "figures": {}, "limits": {}}
    written = json.dumps(report)
    secrets = ["S3CRET", str(tiny_folder), str(tmp_path), *samples.SENTENCES]
    assert not [secret for secret in secrets if secret in written]


def test_the_tables_show_both_parts(gircse: Gircse, tiny_folder: Path) -> None:
    result = gircse(*deep(tiny_folder))
    assert result.code == 0, result.err
    assert "libraries" in result.out and "congruence, float32" in result.out and "skipped" in result.out
    assert result.err.count("passed: congruence") >= 1  # progress, one line per check


def test_a_failed_check_exits_1(gircse: Gircse, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(congruence, "FLOAT32_LIMIT", -1.0)
    result = gircse(*deep(tiny_folder, "--json"))
    assert (result.code, result.json["ok"]) == (1, False)
    failed = {check["name"]: check for check in result.json["checks"] if check["state"] == "failed"}
    assert failed["congruence, float32"]["limits"]["together"] == -1.0


def test_an_error_in_the_report_names_no_folder(
    gircse: Gircse, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise OSError(f"could not map {tiny_folder}/model.safetensors, see http://me:S3CRET@host/")

    monkeypatch.setattr(congruence, "engine", broken)
    report = gircse(*deep(tiny_folder, "--json")).json
    found = next(check["found"] for check in report["checks"] if check["name"] == "congruence, float32")
    assert found == "OSError: could not map MODEL/model.safetensors, see http://***@host/"


@pytest.mark.parametrize("options", [["--device", "cpu"], ["--output", "report.json"]])
def test_options_of_the_deep_part_need_it(gircse: Gircse, options: list[str]) -> None:
    result = gircse("doctor", *options)
    assert result.code == 2 and "need --deep" in result.err


def test_a_report_that_cannot_be_written_is_an_error(gircse: Gircse, tiny_folder: Path, tmp_path: Path) -> None:
    result = gircse(*deep(tiny_folder, "--output", str(tmp_path / "missing" / "report.json")))
    assert result.code == 5 and "could not write" in result.err


def test_a_device_that_is_not_there_is_an_error(gircse: Gircse, tiny_folder: Path) -> None:
    result = gircse("doctor", "--model", str(tiny_folder), "--deep", "--device", "cuda:77")
    assert result.code == 5 and "cuda:77" in result.err
