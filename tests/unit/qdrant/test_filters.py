from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from qdrant_client import models
from qdrant_client.local.json_path_parser import JsonPathItemType, parse_json_path

from gircse_rag.errors import InputError
from gircse_rag.qdrant.filters import as_filter, field_path


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("legs", "legs"),
        ("_chunk.number", "_chunk.number"),
        ("a-b_1", "a-b_1"),
        ("Release Date", '"Release Date"'),
        (" padded ", '" padded "'),
        ("a/b.c d", '"a/b"."c d"'),
        ("ü", '"ü"'),
        ("line\nend", '"line\nend"'),
        ("tags[]", "tags[]"),
        ("tags[0][].name", "tags[0][].name"),
        ("my tags[10].a b", '"my tags"[10]."a b"'),
        ("price [EUR]", '"price [EUR]"'),
        ("a[0", '"a[0"'),
        ("[0]", '"[0]"'),
        ("a[-1]", '"a[-1]"'),
        ("a[99999999999999999999]", '"a[99999999999999999999]"'),
        ('"No. of pages"', '"No. of pages"'),
        ('"x[0]"[0]."a.b".c', '"x[0]"[0]."a.b".c'),
        ('""', '""'),
    ],
)
def test_field_path_quotes_names_where_needed(key: str, path: str) -> None:
    assert field_path(key) == f"metadata.{path}"
    parse_json_path(field_path(key))


@pytest.mark.parametrize(
    "key",
    [
        "",
        7,
        None,
        ".",
        "a.",
        ".a",
        "a..b",
        "No. of pages",
        "a .b",
        'in 3"',
        '"open',
        '"a"b',
        "back\\slash",
        '"b\\s"',
        "\ud800",
    ],
)
def test_keys_without_a_path_are_refused(key: str) -> None:
    with pytest.raises(InputError, match="a filter has the key " + re.escape(repr(key))):
        as_filter({key: 1})


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters='"\\'), min_size=1))
def test_every_name_has_a_path_if_quoted(name: str) -> None:
    first, second = parse_json_path(field_path(f'"{name}"'))
    assert (first.key, second.key, second.item_type) == ("metadata", name, JsonPathItemType.KEY)


@given(st.text())
def test_every_key_has_a_path_or_is_refused(key: str) -> None:
    try:
        path = field_path(key)
    except InputError:
        return
    assert parse_json_path(path)[0].key == "metadata"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"gte": 2**53}, "9007199254740992; give an integer below 2"),
        ({"gt": 0, "lt": -(2**60)}, "compares ranges as floats"),
        ({"lte": 10**400}, "64 bits"),
        ({"gte": float("nan")}, "nan is not a JSON number"),
        ({"lt": float("inf")}, "inf is not a JSON number"),
        (float("nan"), "nan is not a JSON number"),
        ([1.5, float("-inf")], "-inf is not a JSON number"),
        (2**63, "64 bits; if the field holds text, give a string"),
        ([1, -(2**63) - 1], "64 bits"),
        ([1, None], "None is in a list"),
        ([["a"]], "is in a list"),
        ([{"gte": 1}], "is in a list"),
    ],
)
def test_values_that_qdrant_would_change_or_cannot_compare_are_refused(value: object, message: str) -> None:
    with pytest.raises(InputError, match=rf"query_filter 'v': .*{message}"):
        as_filter({"v": value})


@pytest.mark.parametrize("value", [2**63 - 1, -(2**63), {"gte": 2**53 - 1}, {"gte": 1e18}, {"gt": None, "lt": 1}])
def test_values_that_qdrant_compares_exactly_are_accepted(value: object) -> None:
    assert as_filter({"v": value}) is not None


def test_strings_and_integers_of_a_list_are_one_condition_each() -> None:
    one = models.FieldCondition(key="metadata.v", match=models.MatchAny(any=["a", "b"]))
    assert as_filter({"v": ["a", "b"]}) == models.Filter(must=[one])
    two = models.FieldCondition(key="metadata.v", match=models.MatchAny(any=[1, 2]))
    true = models.FieldCondition(key="metadata.v", match=models.MatchValue(value=True))
    half = models.FieldCondition(key="metadata.v", range=models.Range(gte=0.5, lte=0.5))
    mixed = as_filter({"v": ["a", 1, True, "b", 0.5, 2]})
    assert mixed == models.Filter(must=[models.Filter(should=[one, two, true, half])])
