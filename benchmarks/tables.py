"""The benchmark programs' JSON files, and the Markdown tables made from them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
NAMES = (
    *("throughput", "throughput_2_threads", "latency", "cost", "prefix_cache"),
    *("memory", "quality", "congruence", "laptop", "serving", "adapt"),
)

Results = Mapping[str, Mapping[str, Any]]


def load(folder: Path = RESULTS) -> Results:
    """Program name -> contents of its JSON file, for the programs that were run."""
    files = {name: folder / f"{name}.json" for name in NAMES}
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in files.items() if path.exists()}


def parts(results: Results, name: str) -> dict[str, Any]:
    """Part -> measurement of one program; empty if the program was not run."""
    measured: dict[str, Any] = results.get(name, {}).get("results", {})
    return measured


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table: first column left-aligned, the others right-aligned.

    Raises:
        ValueError: there are no rows. The page has no place for empty tables.
    """
    if not rows:
        raise ValueError(f"no measurements for the table {head}: run its program, or remove its markers from the page")
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def times(value: float) -> str:
    return f"{value:.2f}x"


def share(value: float) -> str:
    return f"{100 * value:.0f}%"


def plain(value: float) -> str:
    return f"{value:.2f}"


def mib(value: float) -> str:
    return f"{value:,.0f} MiB"
