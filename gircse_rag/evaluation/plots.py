"""Plot scores against K from reports: one panel per task, and one for the mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gircse_rag.errors import InputError, require
from gircse_rag.evaluation.results import Report, Score


def plot(reports: Sequence[Report], path: str | Path) -> None:
    """Plot reports in one figure; the extension of `path` (.png, .svg, .pdf) sets its format.

    One report gives one line per set, grouped by task. Several reports give one line per model: the mean over the sets
    of a task that all reports contain. Bands, where shown, are 95% bootstrap intervals. A report with a single K is a
    dashed horizontal line.

    Raises:
        MissingExtraError: matplotlib is not installed.
        InputError: no report, or reports without a common set.
    """
    if not reports:
        raise InputError("there is no report to plot; pass at least one")
    common = set.intersection(*({r.name for r in report.sets} for report in reports))
    names = [r.name for r in reports[0].sets if r.name in common]
    if not names:
        raise InputError("the reports have no evaluation set in common; evaluate the models on the same sets")
    figures, ticker = require("matplotlib.figure", "eval"), require("matplotlib.ticker", "eval")
    tasks = list(dict.fromkeys(reports[0][name].task for name in names))
    same_sets = all(len(r.sets) == len(common) for r in reports) and all(r.mean for r in reports)
    panels = (["mean"] if same_sets else []) + tasks
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = figures.Figure(figsize=(4.4 * columns, 3.6 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for axis, panel in zip(axes, panels, strict=False):
        members = [name for name in names if reports[0][name].task == panel]
        for report in reports:
            if panel == "mean":
                _draw_line(axis, report.mean, report.model)
            elif len(reports) == 1:
                for name in members:
                    _draw_line(axis, report[name].scores[report[name].main], name.partition("/")[2])
            else:
                mean = {
                    k: sum(report[name].scores[report[name].main][k].value for name in members) / len(members)
                    for k in report.steps
                }
                _draw_line(axis, {k: Score(v, v, v) for k, v in mean.items()}, report.model)
        measures = list(dict.fromkeys(reports[0][name].main for name in members))
        excluded = _kinds_outside_mean(reports[0]) if panel == "mean" else ""
        axis.set_title(f"mean of all sets except {excluded}" if excluded else panel)
        axis.set_xlabel("refinement steps K")
        axis.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, min_n_ticks=1))
        axis.set_ylabel(f"{' / '.join(measures) or 'main score'} x 100")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    for axis in list(axes)[len(panels) :]:
        axis.set_visible(False)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _draw_line(axis: Any, scores: Mapping[int, Score], label: str) -> None:
    steps = sorted(scores)
    values = [scores[k].value for k in steps]
    if len(steps) == 1:
        (line,) = axis.plot([], [], linestyle="--", linewidth=1, label=label)
        axis.axhline(values[0], linestyle="--", linewidth=1, color=line.get_color())
        return
    (line,) = axis.plot(steps, values, marker="o", markersize=3, label=label)
    lows, highs = [scores[k].low for k in steps], [scores[k].high for k in steps]
    axis.fill_between(steps, lows, highs, alpha=0.15, color=line.get_color(), linewidth=0)


def _kinds_outside_mean(report: Report) -> str:
    kinds = {"development" if r.name.startswith("dev/") else r.task for r in report.sets if not r.in_mean}
    return " and ".join(sorted(kinds))
