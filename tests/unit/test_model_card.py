"""The scores in docs/understand/model-card.md equal the reports in docs/figures/evaluation, to one decimal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "understand/model-card.md"
STEPS = ("1", "5", "20")
pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="docs/ is not part of this copy")


def report(name: str) -> dict[str, dict[str, Any]]:
    """Load one report as a mapping from set name to result."""
    path = DOCS / f"figures/evaluation/{name}.json"
    return {one["name"]: one for one in json.loads(path.read_text(encoding="utf-8"))["sets"]}


def value(result: dict[str, Any], steps: str) -> float:
    """The main score after `steps` refinement steps."""
    return float(result["scores"][result["main"]][steps]["value"])


def cell(result: dict[str, Any], steps: str) -> str:
    """Format a score to one decimal, with its interval at K=5; empty if that K was not scored."""
    score = result["scores"][result["main"]].get(steps)
    if score is None:
        return ""
    interval = f" [{score['low']:.1f}, {score['high']:.1f}]" if steps == "5" else ""
    return f"{score['value']:.1f}{interval}"


def score_table() -> Iterator[list[str]]:
    """Yield the cells of each body row of the score table."""
    text = PAGE.read_text(encoding="utf-8")
    table = text[text.index("| set | measure |") :].partition("\n\n")[0]
    for line in table.splitlines()[2:]:
        yield [part.strip() for part in line.strip("|").split("|")]


def test_every_score_equals_its_report() -> None:
    ours = report("smollm2-135m_retrieval_sts_contrast") | report("smollm2-135m_classification_clustering")
    minilm = report("minilm")
    rows = {row[0]: row[1:] for row in score_table()}
    means = rows.pop("mean of these ten")
    assert set(rows) == set(ours), "the table and the reports have different sets"
    for name, cells in rows.items():
        assert cells == [ours[name]["main"], *(cell(ours[name], k) for k in STEPS), cell(minilm[name], "0")], name
    ten = [name for name in ours if name.startswith(("retrieval/", "sts/"))]
    assert len(ten) == 10
    expected = [mean(value(ours[name], k) for name in ten) for k in STEPS]
    expected.append(mean(value(minilm[name], "0") for name in ten))
    assert [means[0], *(one.partition(" ")[0] for one in means[1:])] == ["", *(f"{one:.1f}" for one in expected)]
