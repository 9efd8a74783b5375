from __future__ import annotations

import pytest

from gircse_rag.errors import InputError
from gircse_rag.qdrant.limits import MAX_COUNT, check_count, check_name, is_valid_name

INVALID: list[object] = ["", ".", "..", "a/b", "a\\b", 'a"b', "a\0b", "x" * 256, "é" * 128, "\ud800", None, 5]


@pytest.mark.parametrize("name", INVALID)
def test_invalid_names_are_refused(name: object) -> None:
    assert not is_valid_name(name)
    with pytest.raises(InputError, match=r"an alias cannot be called .*; use 1 to 255 bytes"):
        check_name(name, "an alias")


@pytest.mark.parametrize("name", ["a", "x" * 255, "é" * 127, "...", "my docs"])
def test_other_names_are_accepted(name: str) -> None:
    assert is_valid_name(name)
    check_name(name)


@pytest.mark.parametrize("value", [0, -1, 1.0, True, None, "1", MAX_COUNT + 1, 2**70])
def test_counts_outside_the_limits_are_refused(value: object) -> None:
    with pytest.raises(InputError, match="limit must be"):
        check_count("limit", value)


def test_counts_within_the_limits_are_accepted() -> None:
    check_count("limit", 1)
    check_count("limit", MAX_COUNT)
    check_count("offset", 0, 0)
