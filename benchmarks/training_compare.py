"""GIRCSE, last-token and mean pooling on the same 10,000 rows in the same order.

    OMP_NUM_THREADS=1 taskset -c 1 python benchmarks/training_compare.py train  runs/compare --data /work/shared/data
    OMP_NUM_THREADS=1 taskset -c 1 python benchmarks/training_compare.py score  runs/compare --data /work/shared/data
    python benchmarks/training_compare.py report runs/compare     # -> docs/figures/training/compare.json

Every training is a `gircse train` and every score a `gircse eval`, each a process of its own that is skipped when its
output is there: a killed queue goes on where it was when started again. Adapters are kept at 2,500, 5,000 and 10,000
rows seen, each after a short decay of the learning rate. A method's rate is the best at 2,500 rows on a sample of the
development rows (and STS-B dev); the run that won is the first quarter of the long one. Memory: 4 GB.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

METHODS = ("refine", "last", "mean")
RATES = (1e-3, 4e-4)
MILESTONES = (2_500, 5_000, 10_000)
BATCH = 32
STEPS = (1, 2, 3, 5, 10, 15, 20)
REPORT = Path(__file__).resolve().parents[1] / "docs/figures/training/compare.json"


def gircse(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "gircse_rag.cli", *map(str, arguments)], check=True)


def segment(root: Path, data: Path, method: str, rate: float, rows: int) -> Path:
    """Train until `rows` rows have been seen, from where the milestone before ended; returns the adapter's folder."""
    run = root / f"{method}_{rate:g}"
    kept = run / f"rows{rows}"
    if kept.exists():
        return kept
    run.mkdir(parents=True, exist_ok=True)
    config = {
        "output": str(run),
        "data": [str(data / "train")],
        "tasks": str(data / "tasks.json"),
        "pooling": method,
        "steps": 5,
        "rows": rows,
        "batch_size": BATCH,
        "chunk_tokens": 3000,
        "learning_rate": rate,
        "warmup_rows": 400,
        "decay_rows": 500,
        "rank": 16,
        "alpha": 32,
        "save_rows": 320,
        "dtype": "auto",
    }
    (run / "config.yaml").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    print(f"{run.name}: to {rows} rows", flush=True)
    gircse("train", run / "config.yaml")
    shutil.rmtree(run / "copying", ignore_errors=True)
    shutil.copytree(run / "checkpoint", run / "copying")
    (run / "copying").rename(kept)
    return kept


def score(adapter: Path, data: Path, name: str, sets: str, steps: tuple[int, ...], limit: int | None) -> dict[str, Any]:
    """`gircse eval`'s report, kept beside the adapter; `steps` is left out of account for a baseline."""
    output = adapter / f"{name}.json"
    if not output.exists():
        sample = [] if limit is None else ["--limit", limit]
        listed = ",".join(map(str, steps))
        gircse(
            *("eval", data / "eval", "--model", adapter, "--sets", sets, "--steps", listed),
            *("--output", output, "--dtype", "auto", *sample),
        )
    report: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    return report


def development(adapter: Path, data: Path) -> float:
    """The mean over a sample of the development sets, at the last K: what a rate is chosen by."""
    report = score(adapter, data, "development", "dev,sts/stsb_dev", (1, 5), 40)
    last = str(report["steps"][-1])
    scores = [one["scores"][one["main"]][last]["value"] for one in report["sets"]]
    return sum(scores) / len(scores)


def train(root: Path, data: Path) -> None:
    chosen: dict[str, float] = {}
    for rate in RATES:
        for method in METHODS:
            segment(root, data, method, rate, MILESTONES[0])
    found: dict[str, dict[str, float]] = {}
    for method in METHODS:
        scores = {rate: development(segment(root, data, method, rate, MILESTONES[0]), data) for rate in RATES}
        chosen[method] = max(scores, key=lambda rate: scores[rate])
        found[method] = {f"{rate:g}": value for rate, value in scores.items()}
    (root / "rates.json").write_text(json.dumps({"chosen": chosen, "development": found}, indent=1) + "\n")
    for rows in MILESTONES[1:]:
        for method in METHODS:
            segment(root, data, method, chosen[method], rows)


def adapters(root: Path) -> dict[tuple[str, int], Path]:
    """The chosen runs' adapters, as far as there are any: (method, rows) -> folder."""
    chosen = json.loads((root / "rates.json").read_text(encoding="utf-8"))["chosen"]
    places = {(m, rows): root / f"{m}_{rate:g}" / f"rows{rows}" for m, rate in chosen.items() for rows in MILESTONES}
    return {key: place for key, place in places.items() if place.exists()}


def score_all(root: Path, data: Path, limit: int | None) -> None:
    for (_, rows), adapter in sorted(adapters(root).items(), key=lambda item: -item[0][1]):
        steps = STEPS if rows == MILESTONES[-1] else (1, 5, 20)
        score(adapter, data, "evaluation", "retrieval,sts", steps, limit)


def report(root: Path) -> None:
    """Means with their intervals, each set's leading score, soft tokens while training: all in one small file."""
    rates = json.loads((root / "rates.json").read_text(encoding="utf-8"))
    curves = []
    for (method, rows), adapter in sorted(adapters(root).items()):
        if not (adapter / "evaluation.json").exists():
            continue
        found = json.loads((adapter / "evaluation.json").read_text(encoding="utf-8"))
        sets = {one["name"]: {k: v["value"] for k, v in one["scores"][one["main"]].items()} for one in found["sets"]}
        curves.append({"method": method, "rows": rows, "limit": found["limit"], "mean": found["mean"], "sets": sets})
    chosen = root / f"refine_{rates['chosen']['refine']:g}" / "log.jsonl"
    keys = ("cursor", "soft_entropy", "soft_heaviest", "soft_commonest", "soft_commonest_id")
    log = [[record[key] for key in keys] for record in map(json.loads, chosen.read_text().splitlines())]
    whole = {"rates": rates, "batch_size": BATCH, "curves": curves, "soft_tokens": {"columns": keys, "rows": log}}
    REPORT.write_text(json.dumps(whole) + "\n", encoding="utf-8")
    print(REPORT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "score", "report"))
    parser.add_argument("root", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--limit", type=int, help="score a sample of each set, for a quick look")
    options = parser.parse_args()
    if options.what != "report" and options.data is None:
        parser.error("--data is needed: a folder laid out like shared/data")
    if options.what == "train":
        train(options.root, options.data)
    elif options.what == "score":
        score_all(options.root, options.data, options.limit)
    else:
        report(options.root)


if __name__ == "__main__":
    main()
