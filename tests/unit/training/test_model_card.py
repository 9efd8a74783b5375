"""The tables of docs/model_card.md are what the measurements in docs/figures say."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "model_card_table.py"


@pytest.mark.skipif(not SCRIPT.exists(), reason="benchmarks/ is not part of this copy")
def test_the_model_card_says_what_was_measured():
    done = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"run python benchmarks/model_card_table.py\n{done.stderr}"
