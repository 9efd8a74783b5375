from __future__ import annotations

import json
from pathlib import Path

import pytest

from gircse_rag.documents.readers import count_documents
from tests.unit.documents.readers import read, read_one, reason


def _write(folder: Path, text: str) -> Path:
    path = folder / "a.json"
    path.write_text(text)
    return path


def test_a_list_of_objects_is_read_like_lines(tmp_path: Path) -> None:
    rows = [{"id": 7, "text": "Cats purr.", "kind": "animal"}, {"text": "Dogs bark.", "metadata": {"legs": 4}}]
    path = _write(tmp_path, json.dumps(rows, indent=2))
    documents, skipped = read(path)
    assert [(each.id, each.text, each.metadata) for each in documents] == [
        ("a.json#7", "Cats purr.", {"kind": "animal"}),
        ("a.json:2", "Dogs bark.", {"legs": 4}),
    ]
    assert skipped == [] and count_documents([path]) == 2


def test_a_bad_object_is_skipped_alone(tmp_path: Path) -> None:
    rows = ['{"text": "one"}', '{"t": 1}', '{"text": "a", "text": "b"}', '{"text": "c", "x": [{"y": 1, "y": 2}]}']
    text = f'[{", ".join(rows)}, {{"text": "five"}}]'
    documents, skipped = read(_write(tmp_path, text))
    assert [each.text for each in documents] == ["one", "five"]
    assert [each.reason.partition(":")[0] for each in skipped] == ["object 2", "object 3", "object 4"]
    assert "the field 'y' occurs twice" in skipped[-1].reason


@pytest.mark.parametrize("text", ['{"a": 1}', "[1, 2]", '[{"text": "a"}, 3]', "[]", '"words"', "\ufeff{}"])
def test_other_values_are_one_text(tmp_path: Path, text: str) -> None:
    document = read_one(_write(tmp_path, text))
    assert (document.id, document.text, document.metadata) == ("a.json", text.removeprefix("\ufeff"), {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ('[{"text": "a"},\n{"text": ', "not JSON: Expecting value at line 2"),
        ("[" * 200_000, "not JSON that Python can read"),
        ("9" * 5000, "not JSON that Python can read"),
        (" " * (8 * 2**20 + 1), "too large"),
    ],
)
def test_what_is_no_json_is_refused(tmp_path: Path, text: str, message: str) -> None:
    assert message in reason(_write(tmp_path, text))
