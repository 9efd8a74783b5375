"""The figures of docs/checkpoint.md and docs/model_card.md, from the JSON in docs/figures.

python benchmarks/training_figures.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import model_card_table as table

FIGURES = Path(__file__).resolve().parents[1] / "docs/figures"
TRAINING, EVALUATION = FIGURES / "training", FIGURES / "evaluation"
LABELS = {"levelled": "GIRCSE, levelled gradients", "last": "last-token pooling", "mean": "mean pooling"}
MINILM = "all-MiniLM-L6-v2"


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def steps() -> Any:
    """The shipped adapter's scores against K, by task, with the mean over the quality sets; MiniLM as a level."""
    ours, theirs = (read(EVALUATION / name) for name in ("smollm2-135m_retrieval_sts_contrast.json", "minilm.json"))
    levels = {one["name"]: one for one in theirs["sets"]}
    figure, panels = plt.subplots(1, 4, figsize=(13, 3.2), layout="constrained")
    x = ours["steps"]
    mean = [ours["mean"][str(k)] for k in x]
    panels[0].plot(x, [one["value"] for one in mean], "o-", markersize=3, label="smollm2-135m")
    panels[0].fill_between(x, [one["low"] for one in mean], [one["high"] for one in mean], alpha=0.15)
    quality = [one for one in ours["sets"] if one["task"] in ("retrieval", "sts")]
    level = sum(levels[one["name"]]["scores"][one["main"]]["0"]["value"] for one in quality) / len(quality)
    panels[0].axhline(level, linestyle="--", linewidth=1, color="grey", label=MINILM)
    panels[0].set_title(f"mean of the {len(quality)} sets")
    for panel, task in zip(panels[1:], ("retrieval", "sts", "contrast"), strict=True):
        for one in (one for one in ours["sets"] if one["task"] == task):
            y = [one["scores"][one["main"]][str(k)]["value"] for k in x]
            panel.plot(x, y, "o-", markersize=3, label=one["name"].partition("/")[2])
        panel.set_title({"retrieval": "nDCG@10", "sts": "Spearman", "contrast": "instruction followed"}[task])
    for panel in panels:
        panel.axvline(5, linewidth=0.5, color="grey")
        panel.set_xlabel("K")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=6)
    return figure


def loss() -> Any:
    """`batch384`'s training: L_1 and L_K (running medians over 9 batches), gradient norm and rate."""
    log = read(TRAINING / "batch384_log.json")
    rows = [dict(zip(log["columns"], row, strict=True)) for row in log["rows"]]
    x = [row["cursor"] for row in rows]
    figure, panels = plt.subplots(1, 3, figsize=(11, 3), layout="constrained")
    series = {"L_1": [row["L_1..L_K"][0] for row in rows], "L_K": [row["L_1..L_K"][-1] for row in rows]}
    for label, values in series.items():
        panels[0].plot(x, smooth(values), label=label)
    panels[0].legend()
    panels[1].plot(x, smooth([row["gradient_norm"] for row in rows]))
    panels[1].set_yscale("log")
    panels[2].plot(x, [row["learning_rate"] for row in rows])
    for panel, title in zip(panels, ("loss", "gradient norm", "learning rate"), strict=True):
        panel.set(title=title, xlabel="rows seen")
        panel.grid(alpha=0.3)
    return figure


def soft_tokens() -> Any:
    """Short runs from the same first weights: entropy of the soft tokens, and how much the commonest token weighs."""
    runs = read(TRAINING / "soft_tokens.json")["runs"]
    figure, panels = plt.subplots(1, 3, figsize=(12, 3.2), layout="constrained")
    for run in runs:
        log = [dict(zip(run["columns"], row, strict=True)) for row in run["log"]]
        x = [row["cursor"] for row in log]
        panels[0].plot(x, smooth([row["entropy"] for row in log]), label=run["name"])
        panels[1].plot(x, smooth([row["commonest"] for row in log]))
        panels[2].plot(x, smooth([row["L_1"] - row["L_K"] for row in log]))
    for panel, title in zip(panels, ("entropy, nats", "weight of the commonest token", "L_1 - L_5"), strict=True):
        panel.set(title=title, xlabel="rows seen")
        panel.grid(alpha=0.3)
    panels[2].set_yscale("symlog", linthresh=1)
    panels[0].legend(fontsize=6)
    return figure


def compare() -> Any:
    """The methods after equally many rows: the mean over the quality sets against K, and against the rows seen."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    against_steps(panels[0])
    against_rows(panels[1])
    for panel in panels:
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7)
    return figure


def against_steps(panel: Any) -> None:
    sets = table.at_budget("levelled")
    steps = sorted(int(k) for k in sets[table.QUALITY[0]])
    panel.plot(steps, [table.mean(sets, k) for k in steps], "o-", markersize=3, label=LABELS["levelled"])
    for method, style in (("last", "--"), ("mean", ":")):
        panel.axhline(table.mean(table.at_budget(method), 0), linestyle=style, color="grey", label=LABELS[method])
    panel.set(
        xlabel="K at inference", ylabel=f"mean of {len(table.QUALITY)} sets", title=f"after {table.BUDGET:,} rows"
    )


def against_rows(panel: Any) -> None:
    shared = table.scored_everywhere()
    for method, k, style, color in (
        ("levelled", 1, "o:", "C0"),
        ("levelled", table.K, "o-", "C0"),
        ("last", 0, "s--", "grey"),
        ("mean", 0, "v:", "grey"),
    ):
        y = [table.mean(table.at_budget(method, rows, shared), k) for rows in table.BUDGETS]
        label = LABELS[method] + (f", K={k}" if k else "")
        panel.plot(table.BUDGETS, y, style, markersize=3, color=color, label=label)
    panel.set(xlabel="rows seen", ylabel=f"mean of {len(shared)} sets", title="against the data")


def smooth(values: list[float], width: int = 4) -> list[float]:
    """Running median over 2 * width + 1 batches: tasks differ more than a stretch of training does."""
    return [median(values[max(0, i - width) : i + width + 1]) for i in range(len(values))]


def main() -> None:
    plt.rcParams["svg.hashsalt"] = "gircse"  # the same figure is the same file
    for draw, needs in (
        (steps, EVALUATION / "minilm.json"),
        (loss, TRAINING / "batch384_log.json"),
        (soft_tokens, TRAINING / "soft_tokens.json"),
        (compare, TRAINING / "compare_cpu.json"),
    ):
        if not needs.exists():
            print(f"{draw.__name__}: {needs} has not been measured")
            continue
        path = TRAINING / f"{draw.__name__}.svg"
        draw().savefig(path, metadata={"Date": None})
        print(path)


if __name__ == "__main__":
    main()
