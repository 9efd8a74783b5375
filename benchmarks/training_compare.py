"""GIRCSE, last-token and mean pooling on the same 10,000 rows in the same order.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/training_compare.py train  runs/compare --data D --method levelled
    OMP_NUM_THREADS=1 taskset -c 1 python benchmarks/training_compare.py train  runs/compare --data D --method last
    OMP_NUM_THREADS=1 taskset -c 1 python benchmarks/training_compare.py score  runs/compare --data D
    python benchmarks/training_compare.py report runs/compare     # -> docs/figures/training/compare_cpu.json

Every training is a `gircse train` and every score a `gircse eval`, each a process of its own that is skipped when its
output is there: a killed queue goes on where it was when started again. Adapters are kept at 2,500, 5,000 and 10,000
rows seen, each after a short decay of the learning rate. "levelled" is GIRCSE with levelled gradients, "refine" with
the paper's. Memory: 12 GB a training.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

METHODS: dict[str, dict[str, Any]] = {
    "levelled": {"pooling": "refine", "level_gradients": True},
    "refine": {"pooling": "refine"},
    "last": {"pooling": "last"},
    "mean": {"pooling": "mean"},
}
RATE = 1e-3  # the best of three for every method, at batch 64 on development rows: docs/checkpoint.md
MILESTONES = (2_500, 5_000, 10_000)
BATCH = 32
REPORT = Path(__file__).resolve().parents[1] / "docs/figures/training/compare_cpu.json"


def gircse(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "gircse_rag.cli", *map(str, arguments)], check=True)


def segment(root: Path, data: Path, method: str, rows: int) -> None:
    """Train until `rows` rows have been seen, from where the milestone before ended; the adapter: root/method/rows_N"""
    run = root / method
    kept = run / f"rows_{rows}"
    if kept.exists():
        return
    run.mkdir(parents=True, exist_ok=True)
    config = {
        "output": str(run),
        "data": [str(data / "train")],
        "tasks": str(data / "tasks.json"),
        **METHODS[method],
        "steps": 5,
        "rows": rows,
        "batch_size": BATCH,
        "learning_rate": RATE,
        "warmup_rows": 800,
        "decay_rows": 500,
        "rank": 16,
        "alpha": 32,
        "save_rows": 320,
    }
    (run / "config.yaml").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    print(f"{method}: to {rows} rows", flush=True)
    gircse("train", run / "config.yaml")
    shutil.rmtree(run / "copying", ignore_errors=True)
    shutil.copytree(run / "checkpoint", run / "copying")
    (run / "copying").rename(kept)


def score(adapter: Path, data: Path, sets: str, steps: str) -> None:
    """`gircse eval`'s report of one group of sets, kept beside the adapter; a baseline has no steps."""
    output = adapter / f"score_{sets.replace('/', '_')}.json"
    if not output.exists():
        gircse("eval", data / "eval", "--model", adapter, "--sets", sets, "--steps", steps, "--output", output)


def report(root: Path) -> None:
    """Each set's leading score and the log of each training, in one small file."""
    adapters = []
    for adapter in sorted(root.glob("*/rows_*")):
        sets = {}
        for path in sorted(adapter.glob("score_*.json")):
            found = json.loads(path.read_text(encoding="utf-8"))
            for one in found["sets"]:
                sets[one["name"]] = {k: v["value"] for k, v in one["scores"][one["main"]].items()}
        if sets:
            rows = int(adapter.name.removeprefix("rows_"))
            adapters.append({"method": adapter.parent.name, "rows": rows, "sets": sets})
    keys = ("cursor", "task", "loss", "gradient_norm", "rows_per_second")
    logs = {}
    for path in sorted(root.glob("*/log.jsonl")):
        logs[path.parent.name] = [[record[key] for key in keys] for record in map(json.loads, path.open())]
    whole = {"rate": RATE, "batch_size": BATCH, "adapters": adapters, "columns": keys, "logs": logs}
    REPORT.write_text(json.dumps(whole) + "\n", encoding="utf-8")
    print(REPORT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "score", "report"))
    parser.add_argument("root", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--method", choices=METHODS, action="append")
    parser.add_argument("--rows", type=int, choices=MILESTONES, default=MILESTONES[-1], help="no further than this")
    parser.add_argument("--sets", default="retrieval,sts", help="what to score, as of `gircse eval`")
    parser.add_argument("--steps", default="1,5,20")
    options = parser.parse_args()
    if options.what == "report":
        return report(options.root)
    if options.data is None:
        parser.error("--data is needed: a folder laid out like shared/data")
    for method in options.method or METHODS:
        if options.what == "score":
            score(options.root / method / f"rows_{options.rows}", options.data, options.sets, options.steps)
        else:
            for rows in (rows for rows in MILESTONES if rows <= options.rows):
                segment(options.root, options.data, method, rows)
    return None


if __name__ == "__main__":
    main()
