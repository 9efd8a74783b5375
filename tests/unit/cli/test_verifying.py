"""`gircse verify`: it names damage, and the ingest that follows `--repair` removes it."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from gircse_rag.qdrant import open_client
from gircse_rag.qdrant.points import point_id
from tests.unit.cli.conftest import Gircse

STORE = ["--collection", "docs", "--path", "store"]


@pytest.fixture
def damaged(gircse: Gircse, tiny_model: list[str], tmp_path: Path) -> list[str]:
    """An ingested collection in which one text was changed; returns the arguments of the ingest."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(f"The text of {name}.\n")
    command = ["ingest", "a.txt", "b.txt", *STORE, "--json", *tiny_model]
    assert gircse(*command).json["added"] == 2
    clean = gircse("verify", *STORE)
    assert (clean.code, clean.err) == (0, "") and "2 points of 2 documents: all as written" in clean.out
    with closing(open_client(tmp_path / "store")) as client:
        client.set_payload("docs", {"page_content": "Another text."}, points=[point_id("b.txt", 0)])
    return command


def test_damage_is_named_and_repaired_by_an_ingest(gircse: Gircse, damaged: list[str]) -> None:
    found = gircse("verify", *STORE)
    assert found.code == 1 and "1 damaged" in found.out
    assert "damaged: b.txt, chunk 0: its text differs" in found.err
    assert "next: run this command again with --repair, then ingest these documents again" in found.err
    assert gircse(*damaged).json["unchanged"] == 2
    repaired = gircse("verify", *STORE, "--repair")
    assert repaired.code == 1 and "1 damaged, 1 repaired" in repaired.out
    assert "next: ingest these documents again" in repaired.err
    again = gircse(*damaged).json
    assert (again["updated"], again["unchanged"], again["embedded"]) == (1, 1, 1)
    assert gircse("verify", *STORE).code == 0


def test_json(gircse: Gircse, damaged: list[str]) -> None:
    result = gircse("verify", *STORE, "--json")
    assert result.code == 1
    assert {key: result.json[key] for key in result.json if key not in ("damaged", "seconds")} == {
        "collection": "docs",
        "points": 2,
        "documents": 2,
        "unchecked": 0,
        "foreign": 0,
        "vectors_checked": True,
        "repaired": 0,
    }
    expected = {"document": "b.txt", "point": point_id("b.txt", 0), "chunk": 0, "reason": "its text differs"}
    assert result.json["damaged"] == [expected]


def test_a_missing_collection_exits_4(gircse: Gircse, damaged: list[str]) -> None:
    result = gircse("verify", "--collection", "nothing", "--path", "store")
    assert result.code == 4 and "there is no collection 'nothing'" in result.err
