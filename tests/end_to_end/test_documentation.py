"""Every Python block and every command in README.md and docs/ runs as written."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from gircse_rag.cli.app import run

pytestmark = pytest.mark.model

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
# Set-up commands are skipped: CI runs lint and test, and test_demo.py runs the demo.
SET_UP = ("make ", "git clone", "cd ", "pip install", "python -m venv", "#")
# The first pages that people follow run in processes of their own, like all commands in pipes. Other pages run in this
# process, because most of their time would be imports.
IN_PROCESSES = ("README.md", "quickstart.md")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


# The tests of each integration run its page.
PYTHON_PAGES = [page for page in PAGES if page.parent.name != "integrations" and blocks(page, "python")]


def _environment() -> dict[str, str]:
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


@pytest.mark.parametrize("page", PYTHON_PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_runs_as_written(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = "\n".join(blocks(page, "python"))
    if page.name not in IN_PROCESSES:
        monkeypatch.chdir(tmp_path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pytest makes errors of ours
            exec(compile(program, str(page), "exec"), {"__name__": "__main__"})
        return
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page, "bash")], ids=lambda page: str(page.relative_to(ROOT))
)
def test_commands_run_as_written(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = "\n".join(blocks(page, "bash")).replace("\\\n", " ")
    commands = [line for line in script.splitlines() if line.strip() and not line.startswith(SET_UP)]
    monkeypatch.chdir(tmp_path)
    for command in commands:
        words = shlex.split(command)
        if words[0] == "gircse" and not {"|", ">", "&&", ";"} & set(words) and page.name not in IN_PROCESSES:
            with pytest.raises(SystemExit) as ended:
                run(words[1:])
            code, (out, err) = ended.value.code or 0, capsys.readouterr()
        else:
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", command],
                cwd=tmp_path,
                env=_environment(),
                capture_output=True,
                text=True,
                check=False,
            )
            code, out, err = done.returncode, done.stdout, done.stderr
        assert code == 0, f"{command}\n{out[-1500:]}\n{err[-1500:]}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_exist(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text(encoding="utf-8"))
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing


def test_every_test_that_proves_a_promise_exists() -> None:
    page = (ROOT / "docs" / "operate" / "reliability.md").read_text(encoding="utf-8")
    proofs = re.findall(r"`((?:unit|end_to_end|soak|vllm)/[^`:]*)(?:::(\w+))?`", page)
    assert len(proofs) >= 15
    for path, name in proofs:
        test = ROOT / "tests" / path
        assert test.exists(), path
        assert not name or f"def {name}(" in test.read_text(encoding="utf-8"), f"{path}::{name}"
