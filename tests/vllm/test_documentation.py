"""docs/operate/vllm.md does what it says: its `sh` and `py` blocks are run as written, in order, as one session."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/operate/vllm.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(sh|py)\n(.*?)^```", PAGE, re.M | re.S)
PRINTED = (
    r"",  # install
    r"smollm2-135m",  # export and serve
    r'"object":"embedding"',  # curl
    r"^2 576 \d+$",  # the OpenAI client
    r"^\[\[ *([-\d.]+) +([-\d.]+)\]\]$",  # Embedder(url=)
    r"",  # kill
    r"^\(1, 576\)$",  # Embedder in process
    r"^576$",  # vllm.LLM
)
"""What each block prints."""


@pytest.mark.model
@pytest.mark.skipif(
    not (Path(sys.prefix) / ".ready").exists(),
    reason="this environment was not made by scripts/vllm_environment.py, which the page begins with",
)
def test_the_commands_run_as_written(tmp_path: Path) -> None:
    """In a folder that has of a checkout what the page uses: the script, and the environment that it has made."""
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    (tmp_path / ".venv-vllm").symlink_to(sys.prefix)
    script = ["set -euo pipefail", "trap 'kill %1 2>/dev/null || true' EXIT"]
    for number, (language, block) in enumerate(BLOCKS):
        if language == "py":
            (tmp_path / f"block{number}.py").write_text(block, encoding="utf-8")
            block = f"python block{number}.py"
        script.append(f"echo '--- block'\n{block}")
    (tmp_path / "session.sh").write_text("\n".join(script), encoding="utf-8")
    environment = {**os.environ, "PATH": os.environ["PATH"].replace(f"{sys.prefix}/bin{os.pathsep}", "")}
    environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING")  # as a reader has it
    done = subprocess.run(
        ["bash", "session.sh"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=1800
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    printed = done.stdout.split("--- block\n")[1:]
    assert len(printed) == len(PRINTED)
    for text, wanted in zip(printed, PRINTED, strict=True):
        assert re.search(wanted, text, re.M), (wanted, text)
    right, wrong = re.search(PRINTED[4], printed[4], re.M).groups()  # type: ignore[union-attr]
    assert float(right) > float(wrong)


def test_every_launch_line_on_the_page_is_one_that_vllm_understands() -> None:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    lines = re.findall(r"^gircse serve .*$", PAGE, re.M)
    assert len(lines) >= 4
    asked = []
    for line in lines:
        words = shlex.split(line.removesuffix("&"), comments=True)
        asked.append(make_arg_parser(FlexibleArgumentParser()).parse_args(words[2:]))
    assert {options.data_parallel_size for options in asked} == {1, 4}
    assert {options.tensor_parallel_size for options in asked} == {1, 2}


def test_the_page_installs_what_the_makefile_does() -> None:
    (line,) = re.findall(r"^python3 (scripts/vllm_environment\.py) (\S+)", PAGE, re.M)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"$(PYTHON) {line[0]} $(VENV){line[1].removeprefix('.venv')}" in makefile
