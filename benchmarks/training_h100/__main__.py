"""The commands."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def _json(path: str) -> Any:
    return json.loads(Path(path).read_text())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_h100")
    commands = parser.add_subparsers(dest="command", required=True)
    groups = argparse.ArgumentParser(add_help=False)
    groups.add_argument("--groups", type=int, default=2, help="groups of like lengths that attention pads to")

    prepare = commands.add_parser("prepare", help="de-quantise the base model's GGUF; says a checksum")
    for name in ("gguf", "base", "tokenizer"):
        prepare.add_argument(name, type=Path, help="a folder")

    words = argparse.ArgumentParser(add_help=False)
    words.add_argument("--wordings", type=Path, help="JSON file of further wordings of each task's instruction")

    classes = commands.add_parser("classes", parents=[groups, words], help="group tasks that share a graph")
    for name in ("base", "data", "store"):
        classes.add_argument(name, type=Path)
    classes.add_argument("size", type=int, help="rows a batch")
    classes.add_argument("count", type=int, help="classes")

    runs = commands.add_parser("runs", parents=[groups, words], help="train a plan (see runs.py)")
    for name in ("base", "data", "out"):
        runs.add_argument(name, type=Path)
    runs.add_argument("plan", type=_json, help="JSON file: a list of entries")
    runs.add_argument("shapes", type=_json, help="JSON file that `classes` wrote")
    runs.add_argument("deep", type=_json, nargs="?", default=[], help="another, for batches of the higher K")

    score = commands.add_parser("score", parents=[groups], help="score adapters that `runs` keeps, beside it")
    for name in ("base", "data", "out"):
        score.add_argument(name, type=Path)
    score.add_argument("plan", type=_json, help="JSON file: a list of {name, pooling, sets, steps}")

    speed = commands.add_parser("speed", parents=[groups], help="rows a second of the trainer without graphs")
    for name in ("base", "data", "out"):
        speed.add_argument(name, type=Path)
    speed.add_argument("sizes", type=int, nargs="+", help="rows a batch")
    speed.add_argument("--tokenizer", type=Path, help="default: BASE; without a folder at BASE its weights are random")

    given = vars(parser.parse_args())
    command = given.pop("command")
    if command == "prepare":
        from benchmarks.training_h100.base import prepare as chosen
    elif command == "classes":
        from benchmarks.training_h100.shapes import classes as chosen
    elif command == "runs":
        from benchmarks.training_h100.runs import runs as chosen
    elif command == "score":
        from benchmarks.training_h100.scoring import score as chosen
    else:
        from benchmarks.training_h100.speed import speed as chosen

        given["tokenizer"] = given["tokenizer"] or given["base"]
    chosen(**given)


if __name__ == "__main__":
    main()
