"""The notebook "Make it yours" runs as written, and the adapted model knows the code names that it teaches."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "make_it_yours.ipynb"


@pytest.mark.model
@pytest.mark.slow
def test_the_notebook_gains_on_held_out_questions(tmp_path: Path) -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    program = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((tmp_path / "my-model" / "adapt.json").read_text(encoding="utf-8"))
    (line,) = (
        line for line in report["changes"] if (line["kind"], line["steps"], line["metric"]) == ("dense", 5, "ndcg@10")
    )
    assert report["changed"] and line["gain"]["value"] > 0.05
    assert report["probes"][1] >= report["probes"][0] - 0.03
