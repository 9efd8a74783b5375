"""Names and numbers that every store accepts; checked here, because stores fail on them in different ways."""

from __future__ import annotations

from gircse_rag.errors import InputError

MAX_COUNT = 2**31 - 1
"""Largest number of hits or points in a request. Embedded stores and gRPC overflow on larger numbers."""

_MAX_BYTES = 255  # of a file name
_FORBIDDEN = frozenset('<>:"/\\|?*\0\x1f')


def is_valid_name(name: object) -> bool:
    """Whether a collection or an alias may have this name. A valid name is also one component of a path."""
    if not isinstance(name, str) or name in ("", ".", "..") or _FORBIDDEN & set(name):
        return False
    try:
        return len(name.encode()) <= _MAX_BYTES
    except UnicodeEncodeError:  # a lone surrogate
        return False


def check_name(name: object, kind: str = "a collection") -> None:
    """Check a name; `kind` says in the message what has it ("an alias").

    Raises:
        InputError: the name is not valid (see `is_valid_name`).
    """
    if not is_valid_name(name):
        raise InputError(f'{kind} cannot be called {name!r}; use 1 to {_MAX_BYTES} bytes of UTF-8, none of <>:"/\\|?*')


def check_count(name: str, value: object, least: int = 1) -> None:
    """Check the argument `name`, a number of hits or points.

    Raises:
        InputError: the value is not an integer from `least` to `MAX_COUNT`.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name} must be an integer of at least {least}, not {value!r}")
    if value > MAX_COUNT:
        raise InputError(f"{name} must be at most {MAX_COUNT:,}, not {value!r}")
