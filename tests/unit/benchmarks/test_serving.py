"""The load program runs against a real server with a tiny model."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

pytest.importorskip("benchmarks.common", reason="benchmarks/ is not part of this copy")

from benchmarks import common, serving, tables, write_tables


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::gircse_rag.errors.GircseWarning")
def test_the_load_program_fills_its_table(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "train").mkdir()
    for source in common.DOCUMENT_SOURCES:
        with gzip.open(tmp_path / "train" / f"{source}.jsonl.gz", "wt", encoding="utf-8") as file:
            for number in range(20):
                row = {"query": f"{source} question {number}", "positive": f"the {source} page of the world {number}"}
                file.write(json.dumps(row) + "\n")
    out = tmp_path / "serving.json"
    arguments = ["--model", str(tiny_folder), "--data", str(tmp_path), "--out", str(out), "--dtype", "float32"]
    serving.main([*arguments, "--documents", "60", "--queries", "5", "--rounds", "1"])
    results = json.loads(out.read_text())["results"]
    assert f"| {results['queries']['p99_loaded']:.0f} |" in write_tables.serving(tables.load(tmp_path))
    assert results.keys() == {"throughput", "queries", "memory"}
    assert results["throughput"]["server"] > 0 and results["queries"]["p99_loaded"] > 0
    assert results["memory"]["blocks_held"] == 0 and results["memory"]["after"] > 10
    assert "slowdown" in capsys.readouterr().out
