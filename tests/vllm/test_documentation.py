"""docs/vllm.md does what it says: its `sh` and `py` blocks are run as written, in order, as one session."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.model

ROOT = Path(__file__).parents[2]


def test_the_commands_run_as_written(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "vllm.md").read_text(encoding="utf-8")
    script = ["set -euo pipefail", "trap 'kill %1 2>/dev/null || true' EXIT"]
    for number, (language, block) in enumerate(re.findall(r"^```(sh|py)\n(.*?)^```", page, re.M | re.S)):
        if language == "py":
            (tmp_path / f"block{number}.py").write_text(block, encoding="utf-8")
            block = f"{sys.executable} block{number}.py"
        script.append(f"echo '--- block {number}'\n{block}")
    assert len(script) == 9
    (tmp_path / "session.sh").write_text("\n".join(script), encoding="utf-8")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING")  # as a reader has it
    done = subprocess.run(
        ["bash", "session.sh"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=1800
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    for said in ('"object":"embedding"', "2 576 ", "(1, 576)", "576"):
        assert said in done.stdout
