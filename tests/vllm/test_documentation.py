"""The `sh` and `py` blocks of docs/operate/vllm.md run as written, in order, as one session."""

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
"""A pattern that each block's output must match."""


@pytest.mark.model
@pytest.mark.skipif(
    not (Path(sys.prefix) / ".ready").exists(),
    reason="this environment was not made by scripts/vllm_environment.py, which the page begins with",
)
def test_the_commands_run_as_written(tmp_path: Path) -> None:
    """The session runs in a folder with links to what the page uses: scripts/ and the environment."""
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
    environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING")  # as in a reader's shell
    done = subprocess.run(
        ["bash", "session.sh"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=1800
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    printed = done.stdout.split("--- block\n")[1:]
    assert len(printed) == len(PRINTED)
    for text, pattern in zip(printed, PRINTED, strict=True):
        assert re.search(pattern, text, re.M), (pattern, text)
    scores = re.search(PRINTED[4], printed[4], re.M)
    assert scores is not None
    assert float(scores[1]) > float(scores[2])


def test_vllm_accepts_every_launch_line_on_the_page() -> None:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    lines = re.findall(r"^gircse serve --backend vllm .*$", PAGE, re.M)
    assert len(lines) >= 4
    parsed = []
    for line in lines:
        words = shlex.split(line.removesuffix("&"), comments=True)
        parsed.append(make_arg_parser(FlexibleArgumentParser()).parse_args(words[4:]))
    assert {options.data_parallel_size for options in parsed} == {1, 4}
    assert {options.tensor_parallel_size for options in parsed} == {1, 2}


def test_the_page_installs_like_the_makefile() -> None:
    (line,) = re.findall(r"^python3 (scripts/vllm_environment\.py) (\S+)", PAGE, re.M)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"$(PYTHON) {line[0]} $(VENV){line[1].removeprefix('.venv')}" in makefile
