from __future__ import annotations

import pytest

from gircse_rag.errors import GircseError, without_index


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("text 3: the backend broke", "the backend broke"),
        ("text 3 is too long", "its text is too long"),
        ("text 33 is too long", "text 33 is too long"),
        ("the engine stopped", "the engine stopped"),
    ],
)
def test_a_message_without_the_position_of_its_text(message: str, expected: str) -> None:
    assert without_index(GircseError(message, index=3)) == expected
    assert without_index(GircseError(message)) == message
