"""The tables in docs/understand/benchmarks.md equal the measurements."""

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("benchmarks.write_tables", reason="benchmarks/ is not part of this copy")

from benchmarks import tables, write_tables

SCRIPT = Path(write_tables.__file__)
MEMORY = {"peak_above_model_mib": 500.0, "half_peaks_mib": [400.0, 500.0], "seconds": 9.0}
MACHINE = {
    "date": "2026-11-24",
    "command": "python benchmarks/memory.py",
    "machine": {"processor": "x", "cpus": 2, "load_before": [0, 0, 0], "load_after": [1, 1, 1]},
    "versions": {"torch": "2", "transformers": "5"},
    "idle_lock": True,
}
needs_docs = pytest.mark.skipif(not write_tables.PAGE.exists(), reason="docs/ is not part of this copy")


@needs_docs
def test_the_page_equals_the_measurements() -> None:
    done = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"run python benchmarks/write_tables.py\n{done.stderr}"


@needs_docs
@pytest.mark.parametrize("prefix", write_tables.FOLDERS)
def test_a_stale_page_is_detected(prefix: str) -> None:
    page = write_tables.PAGE.read_text(encoding="utf-8")
    results = tables.load(write_tables.FOLDERS[prefix])
    assert write_tables.fill(page, results, prefix) == page
    changed = copy.deepcopy(dict(results))
    report: Any = next(iter(changed.values()))
    report["date"] = "1970-01-01"  # in the table of runs
    assert write_tables.fill(page, changed, prefix) != page


@needs_docs
def test_every_measurement_has_its_table_on_the_page() -> None:
    page = write_tables.PAGE.read_text(encoding="utf-8")
    for prefix, folder in write_tables.FOLDERS.items():
        for name in {name.removesuffix("_2_threads") for name in tables.load(folder)} | {"runs"}:
            assert f"<!-- {prefix}{name} -->\n" in page and f"<!-- /{prefix}{name} -->" in page


def test_only_the_markers_of_the_prefix_are_filled() -> None:
    page = "<!-- memory -->\n<!-- /memory -->\n<!-- float32 memory -->\n<!-- /float32 memory -->\n"
    results: dict[str, Any] = {"memory": {"results": {"ours, 7": MEMORY}}}
    filled = write_tables.fill(page, results, "float32 ")
    before, after = filled.split("<!-- float32 memory -->")
    assert "| ours, 7 | 500 MiB | 400 MiB | 500 MiB | 9 |" in after and "|" not in before


def test_a_table_without_measurements_is_an_error() -> None:
    with pytest.raises(ValueError, match="no measurements"):
        write_tables.latency({})


def test_runs_show_date_machine_idleness_and_command() -> None:
    lines = write_tables.runs({"memory": MACHINE}).splitlines()
    (line,) = lines[2:]
    for part in ("memory.json", "2026-11-24", "x, 2 cpus", "0.0 to 1.0, under an idle lock"):
        assert part in line
    assert "`python benchmarks/memory.py`" in line
