"""Going on from an adapter with more rows of the contrasted tasks, each instruction in many wordings.

    python benchmarks/steer.py FOLDER ADAPTER --data ../shared/data --seed 1 --rate 4e-4 --rows 4000
    gircse train FOLDER/config.yaml

Writes FOLDER/tasks.json and FOLDER/config.yaml. A wording is a template with one of a task's phrases, the instruction
of training, or one of training_h100/wordings.json; those of `UNSEEN` (scoring.py) stay out, so that they can measure.
"""

from __future__ import annotations

import argparse
import json
import sys
from itertools import product
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.training_h100.scoring import UNSEEN

TEMPLATES = ("{0}", "Find {0}", "Retrieve {0}", "Search for {0}", "Given {1}, find {0}", "Given {1}, retrieve {0}")
# By contrasted task: what a query is, phrases for what is asked for, and rows in 6,400.
PLAN = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
OTHERS = 120  # rows of each task that steer.json does not name, in 6,400: so that it is not forgotten


def tasks(data: Path) -> dict[str, dict[str, Any]]:
    """tasks.json with every instruction in several wordings."""
    given = json.loads((data / "tasks.json").read_text(encoding="utf-8"))
    more = json.loads((Path(__file__).parent / "training_h100/wordings.json").read_text(encoding="utf-8"))
    found = {}
    for name, task in given.items():
        made = []
        if name in PLAN:
            made = [t.format(phrase, PLAN[name]["of"]) for t, phrase in product(TEMPLATES, PLAN[name]["phrases"])]
        wordings = [task["instruction"], *more[name], *(wording[0].upper() + wording[1:] for wording in made)]
        found[name] = {**task, "instruction": [wording for wording in wordings if wording != UNSEEN.get(name)]}
    return found


def parser(doc: str | None) -> argparse.ArgumentParser:
    """What every run that goes on from an adapter is told."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("folder", type=Path)
    made.add_argument("adapter", help="to go on from")
    made.add_argument("--data", type=Path, required=True)
    made.add_argument("--seed", type=int, required=True)
    made.add_argument("--rate", type=float, required=True)
    return made


def going_on(given: argparse.Namespace, mixture: dict[str, float]) -> dict[str, Any]:
    """The keys of a training config, with FOLDER/tasks.json as its tasks."""
    return {
        "output": str(given.folder / "run"), "data": [str(given.data / "train")],
        "tasks": str(given.folder / "tasks.json"), "adapter": given.adapter, "mixture": mixture,
        "rows": given.rows, "batch_size": 32, "steps": [2, 8], "level_gradients": True, "save_rows": 1_000,
        "learning_rate": given.rate, "warmup_rows": 320, "decay_rows": given.rows // 2, "seed": given.seed,
    }  # fmt: skip


if __name__ == "__main__":
    arguments = parser(__doc__)
    arguments.add_argument("--rows", type=int, required=True)
    options = arguments.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    worded = tasks(options.data)
    (options.folder / "tasks.json").write_text(json.dumps(worded, indent=1), encoding="utf-8")
    rows = {name: PLAN[name]["rows"] if name in PLAN else OTHERS for name in worded}
    config = going_on(options, {name: rows[name] / task["rows"] for name, task in worded.items()})
    (options.folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
