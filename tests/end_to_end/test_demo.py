"""The script of `make demo`, with a new store: it answers, and a second run embeds nothing."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.model

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"


def test_the_demo_answers_and_a_second_run_embeds_nothing(tmp_path: Path) -> None:
    program = tmp_path / "examples" / "demo.py"  # the demo makes its store beside this folder
    program.parent.mkdir()
    shutil.copy(DEMO, program)
    runs = [
        subprocess.run([sys.executable, str(program)], capture_output=True, text=True, check=True) for _ in range(2)
    ]
    for run in runs:
        assert run.stdout.count("Instruct: ") >= 4
        assert "The same text under two instructions" in run.stdout
    assert "0 unchanged" in runs[0].stdout
    assert "0 documents added" in runs[1].stdout
    assert "nothing: all documents are in the store already" in runs[1].stdout
