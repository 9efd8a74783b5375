from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gircse_rag.qdrant.checksums import hash_content, hash_vector, is_unit, matches_content, unit_vector

_FLOATS = st.floats(-1e300, 1e300, allow_subnormal=False)


@given(st.lists(_FLOATS, min_size=1, max_size=5), st.lists(st.integers(-1, 1), min_size=5, max_size=5))
def test_floats_that_a_store_reads_one_bit_off_still_match(values: list[float], shifts: list[int]) -> None:
    read = [
        value if value == 0 or not shift else math.nextafter(value, math.copysign(math.inf, shift))
        for value, shift in zip(values, shifts, strict=False)
    ]
    assert matches_content({"metadata": {"x": read}}, hash_content({"metadata": {"x": values}}))


@given(st.floats(-1e6, 1e6).filter(lambda value: abs(value) > 1e-6), st.sampled_from([1e-8, -1e-8, 1e-3]))
def test_other_floats_do_not_match(value: float, change: float) -> None:
    assert not matches_content({"metadata": [value * (1 + change)]}, hash_content({"metadata": [value]}))


@given(st.text(max_size=20), st.integers(0, 19))
def test_any_other_text_does_not_match(text: str, position: int) -> None:
    checksum = hash_content({"page_content": text})
    assert matches_content({"page_content": text}, checksum)
    assert not matches_content({"page_content": text[:position] + "x" + text[position:]}, checksum)


@given(st.integers(0, 64 * 32 - 1))
def test_any_flipped_bit_of_a_vector_changes_its_checksum(bit: int) -> None:
    vector = np.full(64, 0.125, np.float32)
    bits = vector.view(np.uint32).copy()
    bits[bit // 32] ^= np.uint32(1 << bit % 32)
    assert hash_vector(bits.view(np.float32)) != hash_vector(vector)


@given(st.lists(st.floats(-2, 2, width=32), min_size=2, max_size=40).filter(any))
def test_unit_vectors_are_kept_and_others_normalised(values: list[float]) -> None:
    unit = unit_vector(np.asarray(values, np.float32))
    assert is_unit(unit)
    assert unit_vector(unit).tobytes() == unit.tobytes()
