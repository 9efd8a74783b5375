"""The error classes. Every message says what happened, to which input, and what to do."""

from __future__ import annotations

import importlib
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from gircse_rag.install_hint import install_command
from gircse_rag.redaction import redact


class GircseError(Exception):
    """Base class of every error this library raises on purpose. Credentials of URLs in its message are hidden.

    Attributes:
        index: position of the offending input in the sequence the caller passed, or None.
    """

    def __init__(self, message: str, *, index: int | None = None) -> None:
        super().__init__(redact(message))
        self.index = index


class InputError(GircseError, ValueError):
    """A text or an argument is invalid; nothing was computed for it."""


class CheckpointError(GircseError):
    """Model files are missing, damaged, or not what they claim to be."""


class SpecMismatchError(GircseError):
    """Two embeddings belong to different vector spaces."""


class StoreError(GircseError):
    """The vector store is locked, down, missing, or has another schema."""


class MissingExtraError(GircseError, ImportError):
    """An optional dependency is not installed; the message names the extra that installs it."""


class GircseWarning(UserWarning):
    """Something is allowed but probably unintended. Credentials of URLs in its message are hidden."""

    def __init__(self, message: str) -> None:
        super().__init__(redact(message))


def first_line(error: BaseException) -> str:
    """First line of another library's error message, or the error's class name if the message is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def without_index(error: GircseError) -> str:
    """The message without the position of the text, which says nothing to whoever did not make the batch."""
    message, label = str(error), f"text {error.index}"
    if message.startswith(f"{label}: "):
        return message.removeprefix(f"{label}: ")
    return f"its text{message.removeprefix(label)}" if message.startswith(f"{label} ") else message


def plural(count: int, noun: str, nouns: str | None = None) -> str:
    """Count and noun in the right number: "1 chunk", "2 chunks"; `nouns` is an irregular plural."""
    return f"{count} {noun if count == 1 else nouns or noun + 's'}"


def summarize(report: object) -> str:
    """A report on one line, for `__repr__`: its class, and its fields that are not zero or empty, lists as sizes."""
    sizes = {
        name: len(value) if isinstance(value, list | dict) else reprlib.repr(value)
        for name, value in vars(report).items()
        if value
    }
    return f"{type(report).__name__}({', '.join(f'{name}={size}' for name, size in sizes.items())})"


def require(module: str, extra: str) -> ModuleType:
    """Import `module`, which only the optional dependency group `extra` installs.

    Raises:
        MissingExtraError: it is not installed; the message contains the pip command.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{module} is not installed; it comes with an extra: {install_command(extra)}"
        ) from error


def is_rust_panic(error: BaseException) -> bool:
    """Whether the error is a panic of a library in Rust. pyo3 raises it as a BaseException, past `except Exception`."""
    return type(error).__module__ == "pyo3_runtime" and type(error).__name__ == "PanicException"


@contextmanager
def refuse_rust_errors(text: str, index: int | None = None) -> Iterator[None]:
    """Raise a Rust library's panic or bare Exception as InputError. `text` names the text that caused it."""
    try:
        yield
    except BaseException as error:
        if type(error) is not Exception and not is_rust_panic(error):
            raise
        raise InputError(f"{text} makes a library fail ({first_line(error)}); leave it out", index=index) from error
