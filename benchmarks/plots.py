"""Plot the figures of docs/figures/engine from the measurements in benchmarks/results.

python benchmarks/plots.py [--results benchmarks/results] [--figures docs/figures/engine]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

HERE = Path(__file__).resolve().parent
COLOURS = {"ours": "#1b6ca8", "loop": "#c0392b", "on": "#1b6ca8", "off": "#c0392b", "limit": "#7f8c8d"}
LABELS = {"ours": "paged engine", "loop": "authors' loop"}


def cost(results: dict[str, Any]) -> Any:
    """Milliseconds per text by length, batch size and K."""
    figure, panels = plt.subplots(1, 3, figsize=(9, 3), sharey=True, layout="constrained")
    titles = {
        "length": "tokens per text (K=5)",
        "batch": "texts per call (32 tokens, K=5)",
        "K": "K (32 texts of 32 tokens)",
    }
    for panel, (kind, title) in zip(panels, titles.items(), strict=True):
        points = {part: found for part, found in results.items() if part.startswith(f"{kind} ")}
        x = [int(part.rpartition(" ")[2]) for part in points]
        for name in ("loop", "ours"):
            y = [1e3 * found["seconds_per_text"][name] for found in points.values()]
            panel.plot(x, y, "o-", markersize=3, color=COLOURS[name], label=LABELS[name])
        panel.set(xscale="log", yscale="log", xlabel=title)
        panel.set_xticks(x, [str(value) for value in x], minor=False)
        panel.set_xticks([], minor=True)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("ms per text")
    panels[0].legend()
    return figure


def memory(results: dict[str, Any]) -> Any:
    """Resident memory above the loaded model by documents done, in the longest run of each side."""
    figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
    for name in ("loop", "ours"):
        runs = [found for part, found in results.items() if part.startswith(f"{name}, ")]
        if runs:
            longest = max(runs, key=lambda found: found["documents"])
            _, done, mib = zip(*longest["samples"], strict=True)
            above = [value - longest["loaded_mib"] for value in mib]
            axes.plot(done, above, linewidth=1, color=COLOURS[name], label=LABELS[name])
    axes.set(xlabel="documents done", ylabel="MiB above the loaded model", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def prefix_cache(results: dict[str, Any]) -> Any:
    """Queries per second by block size: cache off, cache on, and without the shared tokens (limit)."""
    figure, axes = plt.subplots(figsize=(5, 3), layout="constrained")
    sizes = [part.rpartition(" ")[2] for part in results]
    for name in ("limit", "on", "off"):
        y = [found["texts_per_second"][name] for found in results.values()]
        axes.plot(sizes, y, "o-", color=COLOURS[name], label=name)
    axes.set(xlabel="rows per block", ylabel="queries per second", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def latency(results: dict[str, Any]) -> Any:
    """Milliseconds of every query, sorted: one panel per model and K."""
    figure, panels = plt.subplots(1, len(results), figsize=(2.6 * len(results), 3), squeeze=False, layout="constrained")
    colours = {"loop": COLOURS["loop"], "sequential": "#7f8c8d", "sweeps": COLOURS["ours"]}
    for panel, (part, found) in zip(panels[0], results.items(), strict=True):
        for name, colour in colours.items():
            y = sorted(1e3 * row[name]["wall"] for row in found["rounds"])
            panel.plot([(i + 0.5) / len(y) for i in range(len(y))], y, color=colour, label=name)
        panel.set(title=part, xlabel="share of queries", ylim=(0, None))
        panel.title.set_fontsize(8)
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("ms per query")
    panels[0][0].legend(fontsize=7)
    return figure


PLOTS: tuple[Callable[[dict[str, Any]], Any], ...] = (cost, memory, prefix_cache, latency)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--figures", type=Path, default=HERE.parent / "docs/figures/engine")
    arguments = parser.parse_args(argv)
    matplotlib.rcParams |= {
        "svg.hashsalt": "gircse",
        "svg.fonttype": "none",
        "font.size": 8,
    }  # equal numbers give equal files
    for plot in PLOTS:
        path = arguments.results / f"{plot.__name__}.json"
        if path.exists():
            figure = plot(json.loads(path.read_text(encoding="utf-8"))["results"])
            arguments.figures.mkdir(parents=True, exist_ok=True)
            figure.savefig(arguments.figures / f"{plot.__name__}.svg", metadata={"Date": None})
            plt.close(figure)
            print(arguments.figures / f"{plot.__name__}.svg")


if __name__ == "__main__":
    main()
