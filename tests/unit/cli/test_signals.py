"""Signals at random moments of real commands, from the start of the process on.

`make soak` sends 40 of both signals to every command, `make test` 2 of one signal to each.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from itertools import product
from pathlib import Path

import pytest

import gircse_rag
from tests.processes import interruptible
from tests.unit.cli.conftest import Gircse
from tests.unit.cli.test_app import GIRCSE
from tests.unit.cli.test_training import config, write_config

__all__ = ["config"]

SOAK = "GIRCSE_SOAK_KILLS" in os.environ
COUNT = 40 if SOAK else 2
SEED = int(os.environ.get("GIRCSE_SOAK_SEED", "1"))
PACKAGE = str(Path(gircse_rag.__file__).parent)
EARLY = re.compile(r"gircse_rag/(cli/)?(__init__|interrupts)\.py")
"""Files that run before the handlers are installed, in the first milliseconds."""
STORE = ["--collection", "docs", "--path", "store"]
LEFTOVERS = ("*.partial", ".exported-*", ".state-*", ".checkpoint-*")
COMMANDS, SIGNALS = ["ingest", "search", "train", "export"], [signal.SIGINT, signal.SIGTERM]
CASES = list(product(COMMANDS, SIGNALS)) if SOAK else list(zip(COMMANDS, 2 * SIGNALS, strict=True))
pytestmark = pytest.mark.slow


@pytest.fixture
def commands(
    gircse: Gircse, tiny_model: list[str], tiny_folder: Path, config: Path, tmp_path: Path
) -> dict[str, list[str]]:
    (tmp_path / "many.jsonl").write_text("".join(json.dumps({"text": f"text number {n}"}) + "\n" for n in range(300)))
    assert gircse("ingest", "many.jsonl", "--collection", "filled", "--path", "filled", *tiny_model).code == 0
    write_config(config, rows=120, save_rows=12)
    return {
        "ingest": ["ingest", "many.jsonl", *STORE, *tiny_model],
        "search": ["search", "number", "--collection", "filled", "--path", "filled", *tiny_model],
        "train": ["train", str(config)],
        "export": ["export", "exported", "--model", str(tiny_folder)],
    }


@pytest.mark.parametrize("name, number", CASES)
def test_signals_at_any_moment_end_a_command_cleanly(
    commands: dict[str, list[str]], tmp_path: Path, name: str, number: signal.Signals
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()

    def start() -> subprocess.Popen[str]:
        for written in ("store", "run", "exported"):
            shutil.rmtree(tmp_path / written, ignore_errors=True)
        return interruptible(
            [*GIRCSE, *commands[name]],
            cwd=tmp_path,
            env={**os.environ, "TMPDIR": str(scratch)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    began = time.monotonic()
    whole = start()
    out, err = whole.communicate()
    assert whole.returncode == 0, err
    length = time.monotonic() - began
    generator, before_us = random.Random(f"{SEED} {name} {number}"), 0
    for _ in range(COUNT):
        delay = generator.uniform(0, length)
        process = start()
        time.sleep(delay)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        place = f"after {delay:.3f} s: {process.returncode}\n{err}"
        if process.returncode == -number:  # before the handlers were installed, or ending after the command
            assert not [line for line in err.splitlines() if PACKAGE in line and not EARLY.search(line)], place
            before_us += not out
            continue
        assert process.returncode == 128 + number or (process.returncode == 0 and out), place
        assert all(line.startswith(("note: ", "interrupted: ")) for line in err.splitlines()), place
        left = [path for pattern in LEFTOVERS for path in tmp_path.rglob(pattern)]
        assert not left and not list(scratch.iterdir()), place
    assert before_us <= COUNT // 2
    shutil.rmtree(tmp_path / "exported", ignore_errors=True)  # the last run may have finished
    last = interruptible([*GIRCSE, *commands[name]], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    _, error = last.communicate()
    assert last.returncode == 0, error
