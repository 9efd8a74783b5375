"""`gircse migrate`."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import asdict
from typing import Annotated

import typer
from rich.text import Text

from gircse_rag.cli import options
from gircse_rag.cli.output import ExitCode, emit, emit_json, note, note_some, only_results_on_stdout, progress


@options.with_model_options
def migrate(
    old: Annotated[str, typer.Argument(help="The collection to embed again.")],
    new: Annotated[str, typer.Argument(help="The collection to make.")],
    alias: Annotated[
        str | None, typer.Option("--alias", metavar="NAME", help="Let this name stand for NEW once it is whole.")
    ] = None,
    path: options.StorePath = None,
    url: options.StoreUrl = None,
    model: options.ModelOptions = options.DEFAULT,
    as_json: options.AsJson = False,
) -> None:
    """Embed a collection's stored texts with another model, into a new collection.

    OLD stays as it is. Interrupted, the same command goes on with what NEW does not have yet.
    """
    began = time.monotonic()
    with only_results_on_stdout():
        from gircse_rag.qdrant import migrate, open_client
        from gircse_rag.qdrant.stores import build_index

        with closing(open_client(path, url, create=False)) as client:
            embedder = model.load()
            with progress("points") as update:
                try:
                    report = migrate(old, new, embedder=embedder, client=client, alias=alias, progress=update)
                except KeyboardInterrupt:
                    note("interrupted", "what is written is safe; the same command goes on from there")
                    raise typer.Exit(ExitCode.INTERRUPTED) from None
            build_index(client, new)
    note_some("failed", [f"{name}: {reason}" for name, reason in report.failed.items()], len(report.failed))
    if report.extra:
        note(
            "warning", f"{new} has {report.extra} points that {old} has not; delete them, or migrate into another name"
        )
    if as_json:
        emit_json({"old": old, "new": new, **asdict(report), "seconds": round(time.monotonic() - began, 3)})
    else:
        moved = f"; {alias} is now {new}" if report.alias_moved else ""
        emit(
            Text(
                f"{old} to {new}: {report.points} points, {report.embedded} embedded ({report.prompt_tokens} tokens), "
                f"{report.unchanged} there already, {len(report.failed)} failed, "
                f"{time.monotonic() - began:.1f} s{moved}"
            )
        )
    if report.failed or (alias is not None and not report.alias_moved):
        raise typer.Exit(ExitCode.INCOMPLETE)
