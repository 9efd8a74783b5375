"""What a command tells: results to stdout, progress, warnings and notes to stderr, and an exit code."""

from __future__ import annotations

import contextlib
import enum
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO

import typer
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from gircse_rag.errors import GircseWarning, InputError

_NAMED_AT_MOST = 20


class ExitCode(enum.IntEnum):
    """What a command's exit code says (docs/operate/commands.md lists them)."""

    OK = 0
    INCOMPLETE = 1  # it ran to its end, but some inputs failed or a check did not pass
    USAGE = 2
    MODEL = 3
    STORE = 4
    INPUT = 5
    BUG = 70
    INTERRUPTED = 130


def note(kind: str, message: str) -> None:
    """One remark to stderr, as `kind: message`."""
    colour = {"error": "bold red", "warning": "yellow"}.get(kind, "cyan")
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(f"[{colour}]{kind}:[/] {escape(message)}")


def note_some(kind: str, messages: Sequence[object], count: int) -> None:
    """The first twenty messages as notes, and how many more there are of `count`; `messages` may lack the last ones."""
    for message in messages[:_NAMED_AT_MOST]:
        note(kind, str(message))
    if count > _NAMED_AT_MOST:
        part = "" if count == len(messages) else " in part"
        note(kind, f"and {count - _NAMED_AT_MOST} more; --json names them{part}")


def emit_json(value: Any) -> None:
    """One JSON document to stdout. NaN never is JSON: it raises."""
    utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    _write(json.dumps(value, indent=2, ensure_ascii=not utf8, allow_nan=False) + "\n")


def emit(*parts: RenderableType) -> None:
    """Tables and text to stdout, as wide as the terminal, or 120 columns into a pipe."""
    known = sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit()  # rich finds out how wide
    console = Console(file=sys.stdout, highlight=False, width=None if known else 120)
    with _unwritable_is_said(), console.capture() as captured:
        for part in parts:
            console.print(part)
    _write(captured.get())


def _write(text: str) -> None:
    with _unwritable_is_said():
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except UnicodeEncodeError:
            encoding = sys.stdout.encoding
            sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
            sys.stdout.flush()


@contextlib.contextmanager
def _unwritable_is_said() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered goes nowhere at exit
        if isinstance(error, BrokenPipeError):  # `| head` has seen enough
            raise typer.Exit(0) from None
        raise InputError(f"could not write the result to stdout: {error.strerror or error}") from error


@contextlib.contextmanager
def only_results_on_stdout() -> Iterator[None]:
    """While it lasts, what libraries print goes to stderr, a GircseWarning is one line there, and others are unheard
    (GIRCSE_DEBUG=1 shows them)."""
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        if not os.environ.get("GIRCSE_DEBUG"):
            warnings.simplefilter("ignore")
        warnings.simplefilter("always", GircseWarning)
        plain = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if issubclass(category, GircseWarning):
                note("warning", str(message))
            else:
                plain(message, category, filename, lineno, file, line)

        warnings.showwarning = show
        yield


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f}/s", style="progress.data.speed")


@contextlib.contextmanager
def progress(title: str) -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar on stderr with rate and time left.

    Yields:
        update(done, total), or None when stderr is no terminal: there is no bar then.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def shortened(text: str, length: int) -> str:
    """`text` on one line of at most `length` characters."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 3] + "..."
