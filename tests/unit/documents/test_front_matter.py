from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gircse_rag.documents import Chunker, Document
from gircse_rag.documents.front_matter import read_front_matter, read_title
from tests.unit.documents.readers import read_one
from tests.unit.documents.test_chunking import SPEC, TOKENIZER


@pytest.mark.parametrize(
    ("matter", "fields"),
    [
        ("title: Pumps\ntags: [a, b]", {"title": "Pumps", "tags": ["a", "b"]}),
        (
            "year: 2020\ndraft: false\nrate: 0.5\nnone:\nnull: ~",
            {"year": 2020, "draft": False, "rate": 0.5, "none": None},
        ),
        (
            "country: no\non: off\ntime: 12:30\ncode: 007",
            {"country": "no", "on": "off", "time": "12:30", "code": "007"},
        ),
        ("date: 2020-01-31\nhex: 0x1F", {"date": "2020-01-31", "hex": "0x1F"}),
        ("2020: x\na:\n  b: [1, {c: d}]", {"2020": "x", "a": {"b": [1, {"c": "d"}]}}),
        ("# only a comment", {}),
        ("title: Pumps: and seals", {"front_matter": "title: Pumps: and seals"}),
        ("a: &x [1]\nb: *x", {"front_matter": "a: &x [1]\nb: *x"}),
        ("a: !!python/object:os.system x", {"front_matter": "a: !!python/object:os.system x"}),
        ("a: " + "[" * 5000, {"front_matter": "a: " + "[" * 5000}),
        ("a: " + "b" * 70_000, {"front_matter": "a: " + "b" * 70_000}),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_front_matter_becomes_metadata(tmp_path: Path, matter: str, fields: dict[str, Any], end: str) -> None:
    text = f"---\n{matter}\n---\nBody.\n".replace("\n", end)
    found = read_front_matter(text)
    assert {key: value for key, value in found.items() if key != "None"} == fields
    path = tmp_path / "a.md"
    path.write_bytes(text.encode())
    document = read_one(path)
    assert document.text == text and document.metadata == found
    assert [chunk.text for chunk in Chunker(TOKENIZER, SPEC).cut(document)] == ["Body."]


def test_values_that_cannot_be_metadata_are_kept_as_text(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("---\ndata: !!binary aGk=\n---\nBody.\n")
    assert read_one(tmp_path / "a.md").metadata == {"front_matter": "---\ndata: !!binary aGk=\n---\n"}


def test_the_title_is_above_all_headings() -> None:
    def headings(text: str) -> list[tuple[str, ...]]:
        return [
            each.headings for each in Chunker(TOKENIZER, SPEC, by="headings").cut(Document("d", text, markdown=True))
        ]

    matter = "---\ntitle: The\n  guide\n---\n"
    assert read_title(matter) == "The guide"
    assert headings(matter + "Intro.\n\n# Open\n\nOpen it.\n") == [("The guide",), ("The guide", "Open")]
    assert headings(matter + "# The guide\n\n## Open\n\nOpen it.\n")[-1] == ("The guide", "Open")
    assert headings("---\nname: x\n---\nIntro.\n") == [()]
