from __future__ import annotations

import datetime
from typing import Any

import pytest

from gircse_rag.documents.metadata import MAX_DEPTH, json_text
from gircse_rag.documents.readers.rows import json_fields
from gircse_rag.errors import InputError


def nested(depth: int) -> Any:
    value: Any = "x"
    for level in range(depth):
        value = [value] if level % 2 else {"k": value}
    return value


def test_json_text_sorts_keys_and_does_not_escape_text() -> None:
    assert json_text({"b": [1, None, True], "a": {"é": 0.5}}) == '{"a": {"é": 0.5}, "b": [1, null, true]}'


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "a NoneType, not a mapping"),
        ([], "a list, not a mapping"),
        ({1: "a"}, "the key 1, not a string"),
        ({"x": [{2: "b"}]}, "the key 2, not a string"),
        ({"x": float("nan")}, "not JSON"),
        ({"x": [float("-inf")]}, "not JSON"),
        ({"x": "\ud800"}, "not JSON"),
        ({"\ud800": "x"}, "not JSON"),
        ({"x": datetime.date(2020, 1, 1)}, "date is not JSON"),
        ({"x": {1, 2}}, "set is not JSON"),
        ({"x": 2**63}, "field 'x' has an integer beyond 64 bits"),
        ({"x": [{"y": [-(2**63) - 1]}]}, "field 'y' has an integer beyond 64 bits"),
        ({"x": 10**5000}, "beyond 64 bits"),
        ({"x": nested(MAX_DEPTH)}, "more than 64 levels"),
        ({"x": nested(100_001)}, "more than 64 levels"),
    ],
)
def test_metadata_that_is_not_json_raises(metadata: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        json_text(metadata)


def test_metadata_that_contains_itself_raises() -> None:
    value: dict[str, Any] = {}
    value["again"] = [value, value]
    with pytest.raises(InputError, match="more than 64 levels"):
        json_text(value)


def test_the_integers_that_every_store_keeps_are_accepted() -> None:
    assert json_text({"x": [2**63 - 1, -(2**63)]}) == f'{{"x": [{2**63 - 1}, {-(2**63)}]}}'


def test_readers_accept_exactly_the_depth_that_can_be_stored() -> None:
    deepest = {"x": nested(MAX_DEPTH - 1)}
    assert json_text(json_fields(deepest)) == json_text(deepest)
    with pytest.raises(InputError, match="more than 64 levels"):
        json_fields({"x": nested(MAX_DEPTH)})
