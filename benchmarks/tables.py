"""What programs measured, read back, and how a cell of a table says it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
NAMES = ("throughput", "throughput_2_threads", "latency", "cost", "prefix_cache", "memory", "quality", "congruence")
MISSING = "not measured"

Results = Mapping[str, Mapping[str, Any]]
Cell = Callable[[Any], str]


def load(folder: Path = RESULTS) -> Results:
    """Program name -> what its JSON file holds, for those that were run."""
    files = {name: folder / f"{name}.json" for name in NAMES}
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in files.items() if path.exists()}


def find(results: Results, name: str, part: str, *keys: Any) -> Any:
    """A number from one program's results, or None where it was not measured."""
    found: Any = results.get(name, {}).get("results", {}).get(part)
    for key in keys:
        found = None if found is None else found[key]
    return found


def parts(results: Results, name: str) -> dict[str, Any]:
    """Part -> what was measured, of one program; empty if it was not run."""
    found: dict[str, Any] = results.get(name, {}).get("results", {})
    return found


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown; the first column to the left, numbers to the right."""
    if not rows:
        return "Not measured."
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
