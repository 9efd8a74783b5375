"""Checksums of a point. Its record holds three, by which `verify` and later ingests find damage:

    content   the payload beside the record: text, metadata and what LlamaIndex reads
    vector    the dense vector, bit for bit
    check     the other fields of the record

Each is a BLAKE2b of 64 bits as 16 hex digits: for damage by accident, not by an attacker.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

_UNIT_TOLERANCE = 1e-6
"""Qdrant leaves a vector as it is if its squared length is this near to 1; it normalises any other."""
_DIGITS = (15, 14, 13, 12, 11, 10)
"""Qdrant reads long decimals of a payload up to two units in the last place off, so floats are compared by as many
significant digits: the most at which no float of the payload is that near to a rounding boundary."""


def fingerprint(text: str) -> str:
    """Hash a text to 32 hex digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def unit_vector(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    """The vector, (d,) float32, normalised unless every store would keep it as it is."""
    exact = vector.astype(np.float64)
    squared = float(exact @ exact)
    if abs(squared - 1) <= _UNIT_TOLERANCE / 2 or not 0 < squared < math.inf:
        return vector
    return (exact / math.sqrt(squared)).astype(np.float32)


def is_unit(vector: NDArray[np.float32]) -> bool:
    """Whether a Qdrant server keeps the vector, (d,) float32, bit for bit."""
    exact = vector.astype(np.float64)
    return abs(float(exact @ exact) - 1) <= _UNIT_TOLERANCE


def hash_vector(vector: NDArray[np.float32]) -> str:
    """Checksum of a vector, (d,) float32."""
    return _hash(np.ascontiguousarray(vector, "<f4").tobytes())


def hash_content(content: Mapping[str, Any]) -> str:
    """Checksum of payload fields, for a new point. Compare it with `matches_content`."""
    floats = list(_floats(content))
    digits = next((each for each in _DIGITS if all(_is_stable(value, each) for value in floats)), _DIGITS[-1])
    return _hash_rounded(content, digits if floats else None)


def matches_content(content: Mapping[str, Any], checksum: str) -> bool:
    """Whether payload fields, as read from a store, are those that `checksum` was made of."""
    if not any(True for _ in _floats(content)):
        return _hash_rounded(content, None) == checksum
    return any(_hash_rounded(content, digits) == checksum for digits in _DIGITS)


def hash_record(fields: Mapping[str, Any]) -> str:
    """Checksum of a record's fields."""
    return _hash(_json_bytes(fields))


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def _hash_rounded(content: Mapping[str, Any], digits: int | None) -> str:
    return _hash(_json_bytes(content if digits is None else _rounded(content, digits)))


def _json_bytes(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, sort_keys=True).encode(errors="surrogatepass")


def _floats(value: object) -> Iterator[float]:
    if isinstance(value, float):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _floats(part)
    elif isinstance(value, list):
        for part in value:
            yield from _floats(part)


def _is_stable(value: float, digits: int) -> bool:
    """Whether the floats around `value` round to the same digits. Zero is always read exactly."""
    if value == 0:
        return True
    lowest = highest = value
    for _ in range(2):
        lowest, highest = math.nextafter(lowest, -math.inf), math.nextafter(highest, math.inf)
    return f"{lowest:.{digits - 1}e}" == f"{highest:.{digits - 1}e}"


def _rounded(value: Any, digits: int) -> Any:
    if isinstance(value, float):
        return f"{value:.{digits - 1}e}"
    if isinstance(value, Mapping):
        return {key: _rounded(part, digits) for key, part in value.items()}
    return [_rounded(part, digits) for part in value] if isinstance(value, list) else value
