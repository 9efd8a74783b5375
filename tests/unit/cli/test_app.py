from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import gircse_rag
from gircse_rag.cli.app import _report
from gircse_rag.cli.interrupts import SIGNALS
from gircse_rag.cli.output import ExitCode
from gircse_rag.errors import (
    CheckpointError,
    GircseError,
    InputError,
    MissingExtraError,
    SpecMismatchError,
    StoreError,
)
from tests.unit.cli.conftest import Gircse

GIRCSE = [sys.executable, "-c", "from gircse_rag.cli import main; main()"]
COMMANDS = ["ingest", "search", "embed", "explain", "train", "eval", "models", "instructions", "doctor"]


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["embed", "--help"], ["train", "--help"], ["eval", "--help"], ["ingest"], ["models"]],
)
def test_commands_without_a_model_import_no_heavy_package(arguments: list[str]) -> None:
    program = (
        "import sys\nfrom gircse_rag.cli.app import run\n"
        f"try: run({arguments!r})\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'peft', 'qdrant_client', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'imported {sorted(heavy)}' if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_version_and_help(gircse: Gircse) -> None:
    for option in ("--version", "-V"):
        assert gircse(option).out == f"gircse-rag {gircse_rag.__version__}\n"
    result = gircse("--help")
    assert result.code == 0
    assert all(command in result.out for command in COMMANDS)


@pytest.mark.parametrize(("word", "expected"), [("in", ["ingest", "instructions"]), ("se", ["search", "serve"])])
def test_a_shell_completes_commands(
    gircse: Gircse, monkeypatch: pytest.MonkeyPatch, word: str, expected: list[str]
) -> None:
    assert "--install-completion" in gircse("--help").out
    monkeypatch.setenv("_GIRCSE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", f"gircse {word}")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert gircse().out.split() == expected


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_json(gircse: Gircse, command: str) -> None:
    result = gircse(command, "--help")
    assert (result.code, result.err) == (0, "")
    assert "--json" in result.out


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-command"],
        ["embed", "text", "--no-such-option"],
        ["embed", "text", "--steps", "0"],
        ["embed", "text", "--steps", "-1"],
        ["embed", "text", "--steps", "10000"],
        ["embed", "text", "--steps", "many"],
        ["embed", "text", "--role", "poem"],
        ["embed", "text", "--dtype", "int8"],
        ["embed", "--file", "missing.txt"],
        ["explain", "text", "--soft-tokens", "0"],
        ["search", "question"],
        ["search", "question", "--collection", "c", "--limit", "0"],
        ["ingest", "--collection", "c"],
        ["train"],
        ["eval"],
        ["eval", "folder", "--steps", "0"],
        ["eval", "folder", "--steps", "1,many"],
        ["eval", "folder", "--steps", ","],
        ["eval", "folder", "--limit", "0"],
        ["eval", "folder", "--plot", "scores.txt"],
    ],
)
def test_usage_errors_exit_2(gircse: Gircse, arguments: list[str]) -> None:
    result = gircse(*arguments)
    assert (result.code, result.out) == (2, "")
    assert "Error" in result.err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CheckpointError("x"), 3),
        (MissingExtraError("x"), 3),
        (GircseError("x"), 3),
        (StoreError("x"), 4),
        (SpecMismatchError("x"), 4),
        (InputError("x"), 5),
        (RuntimeError("x"), 70),
    ],
)
def test_every_kind_of_error_has_its_exit_code(error: Exception, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert _report(error) is ExitCode(code)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1


def test_an_error_is_one_line_and_a_traceback_only_on_demand(gircse: Gircse, monkeypatch: pytest.MonkeyPatch) -> None:
    result = gircse("embed", "text", "--model", "[bold]nope")
    assert (result.code, result.out) == (3, "")
    assert result.err.startswith("error: no model '[bold]nope'") and result.err.count("\n") == 1
    monkeypatch.setenv("GIRCSE_DEBUG", "1")
    result = gircse("embed", "text", "--model", "nope")
    assert (result.code, result.out) == (3, "")
    assert result.err.startswith("Traceback") and result.err.splitlines()[-1].startswith("error: no model 'nope'")


def test_a_closed_pipe_is_quiet() -> None:
    process = subprocess.Popen([*GIRCSE, "models", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()  # as `| head` does, before anything is written
    assert process.stderr.read() == b""
    assert process.wait() == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a Linux device")
def test_a_result_that_cannot_be_written_exits_5() -> None:
    with Path("/dev/full").open("w") as full:
        result = subprocess.run([*GIRCSE, "models"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 5
    assert result.stderr.splitlines() == ["error: could not write the result to stdout: No space left on device"]


def test_a_closed_stdin_is_a_usage_error() -> None:
    result = subprocess.run(["sh", "-c", '"$@" embed <&-', "sh", *GIRCSE], capture_output=True, text=True)
    assert result.returncode == 2 and "no text given" in result.stderr


def test_the_first_use_announces_the_download(gircse: Gircse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIRCSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    result = gircse("embed", "text", "--model", "smollm2-135m-base")
    assert (result.code, result.out) == (3, "")
    assert "note: smollm2-135m-base has no trained adapter" in result.err
    assert "first use: downloading SmolLM2-135M (93 MB)" in result.err
    assert "error: could not download" in result.err


def test_every_exit_code_is_documented() -> None:
    page = (Path(__file__).parents[3] / "docs" / "operate" / "commands.md").read_text(encoding="utf-8")
    table = page.partition("## Exit codes")[2].partition("##")[0]
    documented = {int(code) for row in re.findall(r"^\| ([\d, ]+) \|", table, re.MULTILINE) for code in row.split(",")}
    assert documented == {int(code) for code in ExitCode} | {128 + number for number in SIGNALS}
