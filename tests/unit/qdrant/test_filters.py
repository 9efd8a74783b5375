from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from qdrant_client import models
from qdrant_client.local.json_path_parser import JsonPathItemType, parse_json_path
from qdrant_client.local.payload_filters import check_filter

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
        ([["a"]], r"\['a'\] cannot be compared"),
        ([{"gte": 1}], "cannot be compared"),
    ],
)
def test_values_that_qdrant_would_change_or_cannot_compare_are_refused(value: object, message: str) -> None:
    with pytest.raises(InputError, match=rf"query_filter 'v': .*{message}"):
        as_filter({"v": value})


@pytest.mark.parametrize("value", [2**63 - 1, -(2**63), {"gte": 2**53 - 1}, {"gte": 1e18}, {"gt": None, "lt": 1}])
def test_values_that_qdrant_compares_exactly_are_accepted(value: object) -> None:
    assert as_filter({"v": value}) is not None


INDEXES = ("keyword", "integer", "float", "bool", "text")


def _schema(kind: str | None) -> dict[str, models.PayloadIndexInfo]:
    if kind is None:
        return {}
    return {"metadata.v": models.PayloadIndexInfo(data_type=models.PayloadSchemaType(kind), points=1)}


@given(
    st.one_of(st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False), st.booleans()),
    st.sampled_from([None, *INDEXES]),
)
def test_a_value_and_its_text_match_the_same_documents(value: Any, kind: str | None) -> None:
    text = json.dumps(value)
    for wanted in (value, text):
        condition = as_filter({"v": wanted}, _schema(kind))
        assert condition is not None
        as_number, as_text, in_list, other = (
            check_filter(condition, {"metadata": {"v": stored}}, 1, {}) for stored in (value, text, [value], "other")
        )
        assert not other
        if kind is None:
            assert as_number and as_text and in_list
        if kind == "keyword":
            assert as_text
        if kind == {int: "integer", float: "float", bool: "bool"}[type(value)]:
            assert as_number and in_list


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [
        ("2020", 2020),
        (2020, "2020"),
        (2020.0, 2020),
        (2020, "2020.0"),
        ("2020", 2020.0),
        ("1.10", "1.10"),
        (1.1, "1.10"),
        (1000, "1e3"),
        (True, "TRUE"),
        ("True", True),
        ("007", "007"),
        (2**60, str(2**60)),
        (None, None),
        ([], [None, "a"]),
    ],
)
def test_a_search_compares_values_whatever_their_types(stored: object, wanted: object) -> None:
    condition = as_filter({"v": wanted}, {})
    assert condition is not None and check_filter(condition, {"metadata": {"v": stored}}, 1, {})
    other = as_filter({"v": {"ne": wanted}}, {})
    assert other is not None and not check_filter(other, {"metadata": {"v": stored}}, 1, {})


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [
        (7, "007"),
        ("1.1", "1.10"),
        (1, True),
        (True, 1),
        (True, "yes"),
        (1, "\u0661"),
        ("", 0),
        (0, ""),
        (2**53, "1e400"),
    ],
)
def test_other_spellings_and_kinds_stay_different(stored: object, wanted: object) -> None:
    condition = as_filter({"v": wanted}, {})
    assert condition is not None and not check_filter(condition, {"metadata": {"v": stored}}, 1, {})


def test_without_the_schema_types_matter() -> None:
    exact = as_filter({"v": "2020"})
    assert exact == models.Filter(must=[models.FieldCondition(key="metadata.v", match=models.MatchValue(value="2020"))])


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({"ne": "a"}, ["b", 3, None, "missing"]),
        ({"ne": ["a", "b"]}, [3, None, "missing"]),
        ({"ne": None}, ["a", "b", 3]),
        ({"exists": True}, ["a", "b", 3]),
        ({"exists": False}, [None, "missing"]),
        (None, [None, "missing"]),
        (["a", None], ["a", None, "missing"]),
        ({"gte": 3, "ne": 4}, [3]),
        ({"gte": 3, "ne": 3}, []),
        ({"exists": True, "ne": "a"}, ["b", 3]),
    ],
)
def test_operators(wanted: object, found: list[object]) -> None:
    condition = as_filter({"v": wanted})
    assert condition is not None
    documents: list[Any] = ["a", "b", 3, None, "missing"]
    payloads = [{"metadata": {} if value == "missing" else {"v": value}} for value in documents]
    kept = [check_filter(condition, payload, 1, {}) for payload in payloads]
    assert [value for value, keep in zip(documents, kept, strict=True) if keep] == found


def test_strings_and_integers_of_a_list_are_one_condition_each() -> None:
    one = models.FieldCondition(key="metadata.v", match=models.MatchAny(any=["a", "b"]))
    assert as_filter({"v": ["a", "b"]}) == models.Filter(must=[one])
    two = models.FieldCondition(key="metadata.v", match=models.MatchAny(any=[1, 2]))
    true = models.FieldCondition(key="metadata.v", match=models.MatchValue(value=True))
    half = models.FieldCondition(key="metadata.v", range=models.Range(gte=0.5, lte=0.5))
    mixed = as_filter({"v": ["a", 1, True, "b", 0.5, 2]})
    assert mixed == models.Filter(must=[models.Filter(should=[one, two, true, half])])
