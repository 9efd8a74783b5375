"""The application: its commands, and the one place where errors become exit codes."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated

import typer

import gircse_rag
from gircse_rag.cli import embedding, environment, evaluation, ingesting, migrating, searching, serving, training
from gircse_rag.cli.output import ExitCode, emit, note
from gircse_rag.errors import GircseError, InputError, SpecMismatchError, StoreError, first_line

app = typer.Typer(
    name="gircse",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 some inputs failed, 2 usage, 3 model, 4 store, 5 bad input, 130 interrupted.",
)


def _version(wanted: bool) -> None:
    if wanted:
        emit(f"gircse-rag {gircse_rag.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """GIRCSE for RAG: embeddings from a language model that thinks before it embeds."""


for command in (
    ingesting.ingest,
    searching.search,
    migrating.migrate,
    embedding.embed,
    embedding.explain,
    training.train,
    evaluation.eval_,
    serving.export,
    environment.models,
    environment.doctor,
):
    app.command(command.__name__.rstrip("_"))(command)
# what serve does not know goes to the server
app.command("serve", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(serving.serve)


def main(arguments: list[str] | None = None) -> None:
    """Run one command and exit. With GIRCSE_DEBUG=1 an error's traceback comes before its one line."""
    try:
        app(arguments, prog_name="gircse")  # exits by itself: 0, 2, 130, or what a command raised as typer.Exit
    except Exception as error:
        if os.environ.get("GIRCSE_DEBUG"):
            traceback.print_exc()
        sys.exit(_report(error))


def _report(error: Exception) -> ExitCode:
    if not isinstance(error, GircseError):
        note(
            "error",
            f"unexpected {type(error).__name__}: {first_line(error)}; GIRCSE_DEBUG=1 shows where. Please report it",
        )
        return ExitCode.BUG
    note("error", str(error))
    if isinstance(error, InputError):
        return ExitCode.INPUT
    if isinstance(error, (StoreError, SpecMismatchError)):
        return ExitCode.STORE
    return ExitCode.MODEL  # a checkpoint, the backend, or an extra that is not installed
