"""Command-line arguments of the programs, and the JSON file that each one writes."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch
import transformers

from benchmarks import machine
from gircse_rag.files import atomic_write

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
# Settings that may differ when a run continues.
UNCHECKED = ("name", "out", "work", "data", "sets", "minutes", "idle_lock", "idle_gate", "rest", "cache")


def parser(description: str | None, name: str, *, rounds: int | None = None) -> argparse.ArgumentParser:
    """Make a parser for the common arguments. Programs that measure time (`rounds`) also get those of the idle lock."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--model", default="smollm2-135m", help="a bundled name, a folder or a Hub id")
    made.add_argument(
        "--data", type=Path, default=HERE.parents[1] / "shared/data", help="folder laid out like shared/data"
    )
    made.add_argument("--out", type=Path, help=f"default: results/{name}.json, or results/float32/{name}.json")
    made.add_argument("--dtype", choices=("bfloat16", "float32", "float16"), default="bfloat16")
    made.add_argument("--threads", type=int, default=1)
    made.set_defaults(name=name)
    if rounds is not None:
        made.add_argument("--rounds", type=int, default=rounds)
        made.add_argument(
            "--idle-lock", type=Path, help="lock file to hold during each round; other programs hold it shared"
        )
        made.add_argument("--idle-gate", type=Path, help="second lock file; other programs take it to start")
        made.add_argument("--rest", type=float, default=5.0, help="seconds between rounds; others may start then")
    return made


class Report:
    """A JSON file, written after each part. A rerun measures only the missing parts.

    Args:
        arguments: `out` is the file. On a rerun, all settings except paths and locks must be equal.
        measure: whether to measure the machine's speed.
    """

    def __init__(self, arguments: argparse.Namespace, *, measure: bool = True) -> None:
        self.path: Path = arguments.out or _default_path(arguments)
        settings = {key: value for key, value in vars(arguments).items() if key not in UNCHECKED}
        if self.path.exists():
            self.data = json.loads(self.path.read_text(encoding="utf-8"))
            if self.data["settings"] != settings:
                raise SystemExit(f"{self.path} holds a run with {self.data['settings']}; use another --out or move it")
            return
        self.data = {
            "date": datetime.now(UTC).date().isoformat(),
            "command": f"python benchmarks/{shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])}",
            "machine": machine.facts(arguments, measure=measure),
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            },
            "settings": settings,
            "idle_lock": getattr(arguments, "idle_lock", None) is not None,
            "results": {},
        }

    def part(self, name: str, measure: Callable[[], object]) -> None:
        """Measure a part and save it, unless the file already holds it."""
        if name in self.data["results"]:
            print(f"{name}: already in {self.path}", flush=True)
            return
        start = time.perf_counter()
        self.data["results"][name] = measure()
        self.data["machine"]["load_after"] = os.getloadavg()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.path) as scratch:
            scratch.write_text(json.dumps(self.data, indent=1) + "\n", encoding="utf-8")
        shown = {key: value for key, value in self.data["results"][name].items() if key != "rounds"}
        print(f"{name} ({time.perf_counter() - start:.0f} s): {_short(shown)}", flush=True)


def _default_path(arguments: argparse.Namespace) -> Path:
    """Results in bfloat16 are in `results`, those of other dtypes in a subfolder."""
    folder = RESULTS if arguments.dtype == "bfloat16" else RESULTS / arguments.dtype
    return folder / f"{arguments.name}.json"


def _short(value: object) -> object:
    """Round numbers and drop lists, for the screen."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _short(part) for key, part in value.items() if not isinstance(part, list)}
    return value
