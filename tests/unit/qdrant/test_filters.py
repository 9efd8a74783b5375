from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
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
