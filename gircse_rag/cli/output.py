"""Command output: results on stdout; progress, warnings and notes on stderr; exit codes."""

from __future__ import annotations

import contextlib
import enum
import json
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import typer
from rich.console import Console, RenderableType
from rich.text import Text

from gircse_rag.errors import GircseWarning, InputError
from gircse_rag.progress import progress as progress
from gircse_rag.redaction import redact

_MAX_NOTES = 20


class ExitCode(enum.IntEnum):
    """Exit codes of the commands (listed in docs/operate/commands.md)."""

    OK = 0
    INCOMPLETE = 1  # the command ran to its end, but some inputs failed or a check did not pass
    USAGE = 2
    MODEL = 3
    STORE = 4
    INPUT = 5
    BUG = 70
    INTERRUPTED = 130


def note(kind: str, message: str) -> None:
    """Print `kind: message` to stderr, without the credentials of URLs in it."""
    colour = {"error": "bold red", "warning": "yellow"}.get(kind, "cyan")
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(Text.assemble((f"{kind}:", colour), f" {redact(message)}"))


def note_some(kind: str, messages: Sequence[object], count: int) -> None:
    """Print the first twenty messages as notes, then how many of `count` are left. `messages` may be incomplete."""
    for message in messages[:_MAX_NOTES]:
        note(kind, str(message))
    if count > _MAX_NOTES:
        which = "them" if count == len(messages) else "some of them"
        note(kind, f"and {count - _MAX_NOTES} more; --json lists {which}")


def emit_json(value: Any) -> None:
    """Print one JSON document to stdout.

    Raises:
        ValueError: the value holds NaN or an infinity, which JSON does not have.
    """
    utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    _write(json.dumps(value, indent=2, ensure_ascii=not utf8, allow_nan=False) + "\n")


def emit(*parts: RenderableType) -> None:
    """Print tables and literal text to stdout, as wide as the terminal, or 120 columns wide in a pipe."""
    width_known = sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit()  # rich finds the width itself
    width = None if width_known else 120
    console = Console(file=sys.stdout, highlight=False, markup=False, emoji=False, width=width)
    with _stdout_errors(), console.capture() as captured:
        for part in parts:
            console.print(part)
    _write(captured.get())


def _write(text: str) -> None:
    with _stdout_errors():
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except UnicodeEncodeError:
            encoding = sys.stdout.encoding
            sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
            sys.stdout.flush()


@contextlib.contextmanager
def _stdout_errors() -> Iterator[None]:
    """Exit quietly when a pipe's reader has closed it; raise other write errors as InputError."""
    try:
        yield
    except OSError as error:
        # Discard what is still buffered, so that flushing at exit cannot fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # for example `| head`
            raise typer.Exit(0) from None
        raise InputError(f"could not write the result to stdout: {error.strerror or error}") from error


@contextlib.contextmanager
def only_results_on_stdout() -> Iterator[None]:
    """Send what libraries print to stderr, GircseWarnings as one line each. Without GIRCSE_DEBUG=1, hide others."""
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        if not os.environ.get("GIRCSE_DEBUG"):
            warnings.simplefilter("ignore")
        warnings.simplefilter("always", GircseWarning)
        original = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, GircseWarning):
                note("warning", str(message))
            else:
                original(message, category, *where, **more)

        warnings.showwarning = show
        yield


def shorten(text: str, length: int) -> str:
    """Put `text` on one line, cut to at most `length` characters."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 3] + "..."
