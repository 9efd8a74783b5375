"""The tables of docs/model_card.md and docs/checkpoint.md, from the measurements in docs/figures.

python benchmarks/model_card_table.py            # rewrites the tables between the markers in the two pages
python benchmarks/model_card_table.py --check    # exits 1 if a page is not what the measurements say
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median

from gircse_rag.evaluation import Report, Score

DOCS = Path(__file__).resolve().parents[1] / "docs"
OURS = Report.load(DOCS / "figures/evaluation/smollm2-135m_retrieval_sts_contrast.json")
MINILM = Report.load(DOCS / "figures/evaluation/minilm.json")
CLASSES = Report.load(DOCS / "figures/evaluation/smollm2-135m_classification_clustering.json")
EQUAL_BUDGET = json.loads((DOCS / "figures/training/compare_cpu.json").read_text(encoding="utf-8"))

TARGETS = {"sts/stsb_test": 78.0, "retrieval/cosqa_dev": 45.0, "retrieval/cranfield": 34.0}
OBEYED = 80.0
QUALITY = [one.name for one in OURS.sets if one.in_mean]
CONTRAST = [one.name for one in OURS.sets if one.task == "contrast"]
K = 5
BUDGETS = (2_500, 5_000, 10_000)
BUDGET = BUDGETS[-1]


def score(report: Report, name: str, metric: str | None = None) -> dict[int, Score]:
    return dict(report[name].scores[metric or report[name].main])


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def scores() -> str:
    rows = [
        [f"{name} ({OURS[name].main})", *(str(score(OURS, name)[k]) for k in OURS.steps), str(score(MINILM, name)[0])]
        for name in QUALITY
    ]
    theirs = sum(score(MINILM, name)[0].value for name in QUALITY) / len(QUALITY)
    # MiniLM's mean over the same sets: its own report has one over all 18.
    rows.append([f"mean of these {len(QUALITY)}", *(str(OURS.mean[k]) for k in OURS.steps), f"{theirs:.1f}"])
    rows.append(["gain over K=1, paired", "", *(f"{OURS.gain[k]}" for k in OURS.steps[1:]), ""])
    return table(["set", *(f"K={k}" for k in OURS.steps), "MiniLM"], rows)


def contrast() -> str:
    rows = []
    for name in CONTRAST:
        for metric in OURS[name].scores:
            ours, theirs = score(OURS, name, metric), score(MINILM, name, metric)
            rows.append([f"{name}, {metric}", *(str(ours[k]) for k in OURS.steps), f"{theirs[0].value:.1f}"])
    return table(["set", *(f"K={k}" for k in OURS.steps), "MiniLM"], rows)


def other_retrieval() -> str:
    rows = []
    for name in (name for name in QUALITY if OURS[name].task == "retrieval"):
        for metric in (metric for metric in OURS[name].scores if metric != OURS[name].main):
            ours = score(OURS, name, metric)
            rows.append([f"{name}, {metric}", *(str(ours[k]) for k in (1, 5, 20)), str(score(MINILM, name, metric)[0])])
    return table(["set", "K=1", "K=5", "K=20", "MiniLM"], rows)


def classification() -> str:
    rows = [
        [one.name, *(str(score(CLASSES, one.name)[k]) for k in CLASSES.steps), str(score(MINILM, one.name)[0])]
        for one in CLASSES.sets
    ]
    return table(["set", *(f"K={k}" for k in CLASSES.steps), "MiniLM"], rows)


def targets() -> str:
    rows = []
    for name, wanted in TARGETS.items():
        found = score(OURS, name)[K]
        rows.append([name, f">= {wanted:.0f}", str(found), "reached" if found.value >= wanted else "missed"])
    for name in CONTRAST:
        found = score(OURS, name)[K]
        rows.append([name, f">= {OBEYED:.0f}", str(found), "reached" if found.value >= OBEYED else "missed"])
    gain = mean(at_budget("levelled"), K) - mean(at_budget("last"), 0)
    holds = "reached" if gain >= 1 else "missed"
    what = f"mean against the better baseline; other adapters, {BUDGET:,} rows each, levelled gradients"
    rows.append([what, ">= +1.0", f"{gain:+.1f}", holds])
    means = [OURS.mean[k].value for k in (1, 5, 20)]
    shown = " / ".join(f"{value:.2f}" for value in means)
    holds = "reached" if means[2] >= means[1] >= means[0] else "missed"
    rows.append([f"z_20 >= z_5 >= z_1 on the mean of {len(QUALITY)}", "yes", f"{shown} at K=1/5/20", holds])
    return table(["what", "target", f"smollm2-135m, K={K}", ""], rows)


def depth() -> str:
    """Where z_20 >= z_5 >= z_1 holds, judged by the numbers before rounding."""
    found = {name: [score(OURS, name)[k].value for k in (1, 5, 20)] for name in (*QUALITY, *CONTRAST)}
    holds = [name for name, (one, five, twenty) in found.items() if twenty >= five >= one]
    broken = [name for name in found if name not in holds]
    five = [name for name in broken if found[name][1] >= found[name][0]]
    rest = [name for name in broken if name not in five]
    return "\n".join(
        (
            f"* Holds on {len(holds)} of {len(found)}: {', '.join(holds)}.",
            f"* z_5 >= z_1, but z_20 < z_5, on {len(five)}: {', '.join(five)}.",
            f"* z_5 < z_1 on {len(rest)}: {', '.join(rest)}.",
        )
    )


def loss() -> str:
    """Median loss of the deepest step, and gradient norm, over stretches of the run (batches of K=4 and K=10 mixed)."""
    log = json.loads((DOCS / "figures/training/batch384_log.json").read_text(encoding="utf-8"))
    records = [dict(zip(log["columns"], row, strict=True)) for row in log["rows"]]
    edges = (0, 4_000, 16_000, 32_000, 48_000, 64_000, 80_000, 96_000, 112_000, 128_000)
    rows = []
    for low, high in pairwise(edges):
        part = [record for record in records if low < record["cursor"] <= high]
        deepest, norm = (
            median(values) for values in ([r["L_1..L_K"][-1] for r in part], [r["gradient_norm"] for r in part])
        )
        rows.append([f"{low:,} - {high:,}", f"{deepest:.2f}", f"{norm:.1f}", f"{part[-1]['learning_rate']:.5f}"])
    return table(["rows seen", "L_K, median", "gradient norm, median", "learning rate at the end"], rows)


def at_budget(method: str, rows: int = BUDGET, names: Sequence[str] = QUALITY) -> dict[str, dict[str, float]]:
    """By set, then by K as text ("0" for a baseline), after `rows` rows.

    Raises:
        KeyError: one of `names` was not scored.
    """
    (found,) = (a["sets"] for a in EQUAL_BUDGET["adapters"] if (a["method"], a["rows"]) == (method, rows))
    return {name: found[name] for name in names}


def mean(sets: dict[str, dict[str, float]], k: int) -> float:
    return sum(one[str(k)] for one in sets.values()) / len(sets)


def scored_everywhere() -> list[str]:
    """The sets that every adapter of the equal budget was scored on."""
    return [name for name in QUALITY if all(name in one["sets"] for one in EQUAL_BUDGET["adapters"])]


def equal_budget() -> str:
    ours, pooled, last = (at_budget(method) for method in ("levelled", "mean", "last"))
    lines = [
        (name, [*(ours[name][str(k)] for k in (1, K, 20)), pooled[name]["0"], last[name]["0"]]) for name in QUALITY
    ]
    means = [*(mean(ours, k) for k in (1, K, 20)), mean(pooled, 0), mean(last, 0)]
    lines.append((f"mean of these {len(QUALITY)}", means))
    rows = [[name, *(f"{value:.1f}" for value in found), f"{found[1] - found[-1]:+.1f}"] for name, found in lines]
    head = ["set", "GIRCSE, K=1", f"K={K}", "K=20", "mean pooling", "last-token pooling", f"K={K} over it"]
    return table(head, rows)


def data_size() -> str:
    """The same methods after fewer rows, on the sets that all of them were scored on."""
    shared = scored_everywhere()
    head = ["rows", "GIRCSE, K=1", f"K={K}", "mean pooling", "last-token pooling", f"K={K} over it"]
    lines = []
    for rows in BUDGETS:
        ours, pooled, last = (at_budget(method, rows, shared) for method in ("levelled", "mean", "last"))
        found = [mean(ours, 1), mean(ours, K), mean(pooled, 0), mean(last, 0)]
        leads = sum(ours[name][str(K)] > last[name]["0"] for name in shared)
        over = f"{found[1] - found[-1]:+.1f}"
        lines.append([f"{rows:,}", *(f"{value:.1f}" for value in found), over, str(leads)])
    return table([*head, f"sets of {len(shared)} it leads"], lines)


PAGES = {
    "model_card.md": (targets, scores, other_retrieval, contrast, classification, depth, loss),
    "checkpoint.md": (equal_budget, data_size),
}


def filled(page: str, sections: Iterable[Callable[[], str]]) -> str:
    """`page` with each `<!-- NAME -->` ... `<!-- /NAME -->` filled by the function of that name."""
    for section in sections:
        begin, end = f"<!-- {section.__name__} -->\n", f"<!-- /{section.__name__} -->"
        before, rest = page.split(begin)
        page = before + begin + section() + "\n" + end + rest.split(end)[1]
    return page


if __name__ == "__main__":
    stale = False
    for name, sections in PAGES.items():
        now = (DOCS / name).read_text(encoding="utf-8")
        stale |= filled(now, sections) != now
        if "--check" not in sys.argv:
            (DOCS / name).write_text(filled(now, sections), encoding="utf-8")
    sys.exit(stale and "--check" in sys.argv)
