"""Renamed arguments: the old name works for one more version, with a DeprecationWarning."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from gircse_rag.errors import InputError

P = ParamSpec("P")
T = TypeVar("T")


def rename_keys(values: Mapping[str, Any], renamed: Mapping[str, str]) -> dict[str, Any]:
    """Copy `values` with old keys replaced by new ones; warn about each.

    Args:
        renamed: old name -> new name.

    Raises:
        InputError: both the old and the new name of an argument are given.
    """
    current = dict(values)
    for old, new in renamed.items():
        if old in current:
            if new in current:
                raise InputError(f"{new} and its old name {old} are both given; drop {old}")
            warnings.warn(f"{old} is now called {new}", DeprecationWarning, stacklevel=3)  # at the caller's caller
            current[new] = current.pop(old)
    return current


def renamed_arguments(**renamed: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Make a function accept old names of its keyword arguments, given as old="new"."""

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def accept(*args: P.args, **kwargs: P.kwargs) -> T:
            return function(*args, **rename_keys(kwargs, renamed))

        return accept

    return decorate
