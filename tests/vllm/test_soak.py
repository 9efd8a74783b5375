"""A short soak; `python -m tests.vllm.soak 20000` is the long one."""

from __future__ import annotations

import pytest

from tests.vllm.soak import soak


@pytest.mark.parametrize("asynchronous", [False, True])
def test_random_lengths_steps_and_aborts(asynchronous: bool) -> None:
    """The soak itself checks every vector and that no slot or block leaks."""
    found = soak(600, asynchronous=asynchronous)
    assert found["submitted"] == 600 == found["finished"] + found["aborted"]
    assert found["aborted"] > 0 and found["preempted"] > 0
