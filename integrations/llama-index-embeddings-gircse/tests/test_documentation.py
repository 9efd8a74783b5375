"""The examples in the README and in docs/ run as written."""

from __future__ import annotations

from pathlib import Path

import pytest
from integrations.fixtures import ROOT, run_page


@pytest.mark.model
def test_readme_runs_as_written(tmp_path: Path) -> None:
    assert run_page(Path(__file__).parents[1] / "README.md", tmp_path) == "2 576\n"


@pytest.mark.model
def test_page_runs_as_written(tmp_path: Path) -> None:
    printed = run_page(ROOT / "docs/guides/integrations/llama-index.md", tmp_path)
    assert printed.count("heap.txt") == printed.count("gzip.txt") == 2
