"""The tables are what the measurements say, and docs/understand/benchmarks.md holds these tables."""

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("benchmarks.readme", reason="benchmarks/ is not part of this copy")

from benchmarks import goals, readme, tables

SCRIPT = Path(readme.__file__)


def measured(**parts: Any) -> dict[str, Any]:
    return {name: {"results": found} for name, found in parts.items()}


def said(results: dict[str, Any], what: str) -> list[str]:
    line = next(line for line in goals.goals(results).splitlines() if what in line)
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_the_page_is_what_was_measured() -> None:
    done = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"run python benchmarks/readme.py\n{done.stderr}"


def test_a_page_that_is_stale_is_noticed() -> None:
    place, folder = next(iter(readme.PAGES.items()))
    page = place.read_text(encoding="utf-8")
    results = tables.load(folder)
    assert readme.filled(page, results) == page
    changed = copy.deepcopy(dict(results))
    changed["memory"] = {**MACHINE, "results": {"ours, 7": MEMORY}}
    assert readme.filled(page, changed) != page


def test_what_was_not_measured_is_called_so() -> None:
    assert said({}, "documents, K=5, times") == [">= 3.00x", "not measured", "not measured"]
    assert readme.latency({}) == "Not measured."


@pytest.mark.parametrize(
    ("value", "cell", "verdict"),
    [(3.0, "3.00x", "reached"), (2.9999, "3.00x", "not reached"), (4.256, "4.26x", "reached")],
)
def test_a_goal_is_judged_before_rounding(value: float, cell: str, verdict: str) -> None:
    results = measured(throughput={"documents, K=5": {"speedup": {"ours": value}, "share_of_peak": 0.5}})
    assert said(results, "documents, K=5, times")[1:] == [cell, verdict]
    assert said(results, "peak in that dtype") == [">= 55%", "50%", "not reached"]


def test_latency_goals_are_upper_bounds_except_the_cosine() -> None:
    part = {"time_ratio": {"sequential": 0.61, "sweeps": 0.2}, "cosine": {"sweeps to sequential": {"min": 0.99989}}}
    results = measured(latency={"smollm2-135m, K=5": part})
    assert said(results, "K=5, sequential")[2] == "not reached"
    assert said(results, "K=5, sweeps, of")[2] == "reached"
    assert said(results, "K=5, sweeps, least") == [">= 0.9999", "0.999890", "not reached"]
    assert said(results, "K=20, sweeps, of")[2] == "not measured"


MEMORY = {"peak_above_model_mib": 500.0, "half_peaks_mib": [400.0, 500.0], "seconds": 9.0}
MACHINE = {
    "date": "2026-11-24",
    "command": "python benchmarks/memory.py",
    "machine": {"processor": "x", "cpus": 2, "load_before": [0, 0, 0], "load_after": [1, 1, 1]},
    "versions": {"torch": "2", "transformers": "5"},
    "idle_lock": True,
}


def test_memory_is_judged_against_the_loop_and_against_itself() -> None:
    parts = {
        "ours, 2000": MEMORY,
        "loop, 2000": {**MEMORY, "peak_above_model_mib": 450.0},
        "ours, 20000": {**MEMORY, "peak_above_model_mib": 520.0},
    }
    assert said(measured(memory=parts), "peak memory") == ["<= the loop's 450 MiB", "500 MiB", "not reached"]
    assert said(measured(memory=parts), "flat")[1:] == ["1.04", "reached"]
    alone = {"ours, 2000": MEMORY}
    assert said(measured(memory=alone), "peak memory")[1:] == ["500 MiB", "not measured"]


def test_quality_is_judged_against_the_reference_of_the_same_dtype() -> None:
    def part(overlap: float, ndcg: float) -> dict[str, float]:
        return {"overlap@10": overlap, "ndcg@10": ndcg}

    parts = {"retrieval/x, bfloat16 reference": part(0.95, 50.0), "retrieval/x, bfloat16 paged": part(0.945, 49.6)}
    assert said(measured(quality=parts), "overlap@10 on retrieval/x") == [">= -0.01", "-0.0050", "reached"]
    assert said(measured(quality=parts), "ndcg@10 on retrieval/x") == [">= -0.3", "-0.40", "not reached"]


def test_runs_tell_date_machine_idleness_and_command() -> None:
    table = readme.runs({"memory": MACHINE})
    line = next(line for line in table.splitlines() if "memory.json" in line)
    for part in ("2026-11-24", "x, 2 cpus", "0.0 to 1.0, under an idle lock", "`python benchmarks/memory.py`"):
        assert part in line
    assert "| cost.json | not measured |" in table
