"""docs/guides/integrations has a page per package, working links, and a table that matches the measurements."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from integrations.fixtures import ROOT

INDEX = ROOT / "docs/guides/integrations/index.md"
PAGES = sorted(INDEX.parent.glob("*.md"))
OVERHEAD = ROOT / "benchmarks" / "results" / "integrations_overhead.json"


def test_every_package_has_a_page() -> None:
    index = INDEX.read_text(encoding="utf-8")
    packages = [path.parent.name for path in (ROOT / "integrations").glob("*/pyproject.toml")]
    assert all(f"`{package}`" in index for package in packages)
    assert len(PAGES) == len(packages) + 1


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text(encoding="utf-8"))
    assert not [target for target in targets if not (page.parent / target).exists()]


def test_table_matches_the_measurements() -> None:
    rows = re.findall(r"^\| ([\w ]+)(, .*)? \| ([\d.]+)% \| ([\d.]+) \|$", INDEX.read_text(encoding="utf-8"), re.M)
    measured = json.loads(OVERHEAD.read_text())["doors"]
    assert len(rows) == len(measured) - 2, "a row per measurement, except the two of Embedder itself"
    for door, batches, own, cpu in rows:
        result = measured[f"{door}, batches of 32" if "32" in batches else door]
        assert (f"{result['own']:.2%}", f"{result['ratio_cpu']:.2f}") == (f"{own}%", cpu)
        assert result["own"] < 0.03
