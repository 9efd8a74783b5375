"""Reports of one model on different sets, joined, are the report that one run would have written."""

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("benchmarks.join_reports", reason="benchmarks/ is not part of this copy")

from benchmarks.join_reports import joined
from gircse_rag.evaluation import Report, evaluate
from tests.unit.evaluation import folders


@pytest.fixture
def parts(tmp_path: Path) -> tuple[Report, Report, Report]:
    root = folders.whole(tmp_path)
    whole = evaluate(folders.WordVectors(), root, (1, 5), model="words")
    one = evaluate(folders.WordVectors(), root, (1, 5), sets=["retrieval", "sts"], model="words")
    others = [name for name in (found.name for found in whole.sets) if not name.startswith(("retrieval/", "sts/"))]
    return whole, one, evaluate(folders.WordVectors(), root, (1, 5), sets=others, model="words")


def test_the_parts_are_the_whole(parts: tuple[Report, Report, Report]) -> None:
    whole, one, other = parts
    both = joined([one, other])
    assert {found.name for found in both.sets} == {found.name for found in whole.sets}
    for k in whole.steps:
        assert both.mean[k].value == pytest.approx(whole.mean[k].value)
        assert both.mean[k].low == pytest.approx(whole.mean[k].low, abs=3.0), "quadrature against resampling"
        assert both.mean[k].high == pytest.approx(whole.mean[k].high, abs=3.0)
    assert {k: gain.value for k, gain in both.gain.items()} == pytest.approx(
        {k: gain.value for k, gain in whole.gain.items()}
    )


def test_reports_of_two_models_are_refused(parts: tuple[Report, Report, Report]) -> None:
    _, one, other = parts
    with pytest.raises(SystemExit, match="different models"):
        joined([one, replace(other, model="others")])
