"""The application: registers the commands and turns errors into exit codes."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated, NoReturn

import typer

import gircse_rag
from gircse_rag.cli import (
    adapting,
    comparing,
    embedding,
    environment,
    evaluation,
    ingesting,
    interrupts,
    mcp,
    migrating,
    searching,
    serving,
    training,
    verifying,
)
from gircse_rag.cli.output import ExitCode, emit, note
from gircse_rag.errors import GircseError, InputError, SpecMismatchError, StoreError, first_line

app = typer.Typer(
    name="gircse",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 success, 1 some inputs failed, 2 usage, 3 model, 4 store, 5 bad input, 128+N signal N.",
)


def _print_version(requested: bool) -> None:
    if requested:
        emit(f"gircse-rag {gircse_rag.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", "-V", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """GIRCSE for RAG: embeddings from a language model that thinks before it embeds."""


for command in (
    ingesting.ingest,
    searching.search,
    migrating.migrate,
    verifying.verify,
    embedding.embed,
    embedding.explain,
    adapting.adapt,
    comparing.compare_instructions,
    training.train,
    evaluation.eval_,
    serving.export,
    mcp.mcp,
    environment.models,
    environment.instructions,
    environment.doctor,
):
    app.command(command.__name__.rstrip("_").replace("_", "-"))(command)
# `serve` passes unknown options on to vLLM
app.command("serve", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(serving.serve)


def run(arguments: list[str] | None = None) -> NoReturn:
    """Run one command (None: the one in sys.argv) and exit. With GIRCSE_DEBUG=1, an error also prints its traceback."""
    try:
        app(arguments, prog_name="gircse")  # always exits: with 0, 2, 130, or the code of a typer.Exit
    except Exception as error:
        if interrupts.current.received is not None:  # raised in an import, an interrupt may become another error
            sys.exit(ExitCode.INTERRUPTED)
        if os.environ.get("GIRCSE_DEBUG"):
            traceback.print_exc()
        sys.exit(_report(error))
    raise AssertionError("typer returned")


def _report(error: Exception) -> ExitCode:
    if not isinstance(error, GircseError):
        what = f"unexpected {type(error).__name__}: {first_line(error)}"
        note("error", f"{what}; please report this bug, with the traceback that GIRCSE_DEBUG=1 shows")
        return ExitCode.BUG
    note("error", str(error))
    if isinstance(error, InputError):
        return ExitCode.INPUT
    if isinstance(error, (StoreError, SpecMismatchError)):
        return ExitCode.STORE
    return ExitCode.MODEL  # the checkpoint, the backend, or a missing extra
