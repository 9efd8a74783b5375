"""The one family of errors: each says what happened, to which input, and what to do."""

from __future__ import annotations

import importlib
from types import ModuleType


class GircseError(Exception):
    """Base of every error this library raises on purpose.

    Attributes:
        index: position of the offending input in the sequence the caller passed, or None.
    """

    def __init__(self, message: str, *, index: int | None = None) -> None:
        super().__init__(message)
        self.index = index


class InputError(GircseError, ValueError):
    """A text or an argument is refused; nothing was computed for it."""


class CheckpointError(GircseError):
    """Model files are missing, damaged, or not what they claim to be."""


class SpecMismatchError(GircseError):
    """Two embeddings do not live in the same vector space."""


class StoreError(GircseError):
    """The vector store is locked, down, missing, or of another shape."""


class MissingExtraError(GircseError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""


class GircseWarning(UserWarning):
    """Something is legal and probably not what you want."""


def first_line(error: BaseException) -> str:
    """What a foreign error says, in one line; its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def require(module: str, extra: str) -> ModuleType:
    """Import `module`, which only the optional dependency group `extra` installs.

    Raises:
        MissingExtraError: it is not installed; the message is the pip command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f'{module} is not installed; it comes with an extra: pip install "gircse-rag[{extra}]"'
        ) from error
