"""The programs' arguments, and the JSON file that a program writes."""

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
PASSING = ("name", "out", "data", "idle_lock", "idle_gate", "rest", "cache")  # what may differ when a run goes on


def parser(description: str | None, name: str, *, rounds: int | None = None) -> argparse.ArgumentParser:
    """The arguments that all programs take; those that time (`rounds`) also take the lock of an idle machine."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--model", default="smollm2-135m", help="a bundled name, a folder or a Hub id")
    made.add_argument("--data", type=Path, default=HERE.parents[1] / "shared/data", help="laid out like shared/data")
    made.add_argument("--out", type=Path, help=f"default: results/{name}.json, or results/float32/{name}.json")
    made.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    made.add_argument("--threads", type=int, default=1)
    made.set_defaults(name=name)
    if rounds is not None:
        made.add_argument("--rounds", type=int, default=rounds)
        made.add_argument(
            "--idle-lock", type=Path, help="held for each round; whoever computes meanwhile holds it shared"
        )
        made.add_argument("--idle-gate", type=Path, help="held with it, and passed by whoever wants to start computing")
        made.add_argument("--rest", type=float, default=5.0, help="seconds between rounds in which others may start")
    return made


class Report:
    """A JSON file, written after each part; parts that it holds already are not measured again.

    Args:
        arguments: `out` is the file; all but paths and locks are the settings that must not differ on a rerun.
        measure: whether to measure the machine too.
    """

    def __init__(self, arguments: argparse.Namespace, *, measure: bool = True) -> None:
        self.path: Path = arguments.out or _default_path(arguments)
        settings = {key: value for key, value in vars(arguments).items() if key not in PASSING}
        if self.path.exists():
            self.data = json.loads(self.path.read_text(encoding="utf-8"))
            if self.data["settings"] != settings:
                raise SystemExit(f"{self.path} holds a run with {self.data['settings']}; name another --out or move it")
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
        """Measure and keep what is called `name`, unless it is there."""
        if name in self.data["results"]:
            print(f"{name}: already in {self.path}", flush=True)
            return
        start = time.perf_counter()
        self.data["results"][name] = measure()
        self.data["machine"]["load_after"] = os.getloadavg()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.path) as scratch:
            scratch.write_text(json.dumps(self.data, indent=1) + "\n", encoding="utf-8")
        said = {key: value for key, value in self.data["results"][name].items() if key != "rounds"}
        print(f"{name} ({time.perf_counter() - start:.0f} s): {_short(said)}", flush=True)


def _default_path(arguments: argparse.Namespace) -> Path:
    """Each dtype but bfloat16, for which the goals were set, has a folder of its own."""
    folder = RESULTS if arguments.dtype == "bfloat16" else RESULTS / arguments.dtype
    return folder / f"{arguments.name}.json"


def _short(value: object) -> object:
    """Rounded for the screen; long lists are left to the file."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _short(part) for key, part in value.items() if not isinstance(part, list)}
    return value
