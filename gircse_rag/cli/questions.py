"""Questions one after the other: from the terminal, with a prompt and a history, or from lines of stdin."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator

import typer

from gircse_rag.cli.output import ExitCode, note
from gircse_rag.errors import InputError

INSTRUCTION = ":instruction"
PROMPT = "question> "


def answer_lines(answer: Callable[[str, str | None], None], instruction: str | None, default: str) -> None:
    """Answer one question per line until the end of the input.

    A bad question is reported and skipped. A line `:instruction TEXT` sets the instruction of the questions after it,
    and `:instruction` alone sets it back to the default.

    Args:
        answer: called with each question and the current instruction.
        instruction: at the start; None is the default.
        default: the default instruction, for notes.

    Raises:
        typer.Exit: with code 1 at the end, if a question was skipped.
    """
    skipped = False
    for line in _lines():
        question = line.strip()
        if not question:
            continue
        command, _, argument = question.partition(" ")
        if command == INSTRUCTION:
            instruction = argument.strip() or None
            note("note", f"instruction: {instruction or default}")
            continue
        try:
            answer(question, instruction)
        except InputError as error:
            note("error", str(error))
            skipped = True
    if skipped:
        raise typer.Exit(ExitCode.INCOMPLETE)


def _lines() -> Iterator[str]:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        yield from sys.stdin
        return
    with contextlib.suppress(ImportError):  # Windows' terminals edit lines themselves
        importlib.import_module("readline")  # gives `input` line editing and a history
    note("note", f"one question per line; {INSTRUCTION} TEXT changes the instruction, Ctrl-D ends")
    while True:
        try:
            yield input(PROMPT)
        except EOFError:
            print()
            return
