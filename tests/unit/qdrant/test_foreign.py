from __future__ import annotations

from typing import Any

import pytest

from gircse_rag.errors import InputError
from gircse_rag.qdrant.foreign import foreign_id, foreign_payload, payload_of, read_payload


def test_a_payload_round_trips() -> None:
    payload = foreign_payload("mine", "text", {"a": [1, {"b": None}]})
    assert read_payload(foreign_id("mine"), payload) == ("mine", "text", {"a": [1, {"b": None}]})


@pytest.mark.parametrize("metadata", [{"x": float("nan")}, {"x": "\ud800"}, {1: "a"}, {"x": {2: "b"}}, {"x": object()}])
def test_metadata_that_is_not_json_is_refused(metadata: Any) -> None:
    with pytest.raises(InputError, match=r"'mine' cannot be stored: its metadata"):
        foreign_payload("mine", "text", metadata)


def test_an_id_that_is_not_valid_unicode_is_refused() -> None:
    with pytest.raises(InputError, match=r"'\\ud800' cannot be stored"):
        foreign_payload("\ud800", "text", {})


def test_stored_metadata_is_read_even_if_it_is_not_json() -> None:
    payload = payload_of("mine", "text", {"x": float("inf")})
    assert read_payload("id", payload) == ("mine", "text", {"x": float("inf")})
