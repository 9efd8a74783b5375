"""The pages in docs/guides/integrations: one a package, links that lead somewhere, and the measured table."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from integrations.fixtures import ROOT

INDEX = ROOT / "docs/guides/integrations/index.md"
PAGES = sorted(INDEX.parent.glob("*.md"))
OVERHEAD = ROOT / "benchmarks" / "results" / "integrations_overhead.json"


def test_a_page_for_each_package() -> None:
    index = INDEX.read_text(encoding="utf-8")
    packages = [path.parent.name for path in (ROOT / "integrations").glob("*/pyproject.toml")]
    assert all(f"`{package}`" in index for package in packages)
    assert len(PAGES) == len(packages) + 1


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text(encoding="utf-8"))
    assert not [target for target in targets if not (page.parent / target).exists()]


def test_the_table_is_what_was_measured() -> None:
    rows = re.findall(r"^\| ([\w ]+)(, .*)? \| ([\d.]+)% \| ([\d.]+) \|$", INDEX.read_text(encoding="utf-8"), re.M)
    measured = json.loads(OVERHEAD.read_text())["doors"]
    assert len(rows) == len(measured) - 2, "all but the Embedder, twice"
    for door, batches, own, cpu in rows:
        found = measured[f"{door}, batches of 32" if "32" in batches else door]
        assert (f"{found['own']:.2%}", f"{found['ratio_cpu']:.2f}") == (f"{own}%", cpu)
        assert found["own"] < 0.03
