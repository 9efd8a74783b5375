"""`gircse migrate`."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import asdict
from typing import Annotated

import typer
from rich.text import Text
from typer import Argument, Option

from gircse_rag.cli import options
from gircse_rag.cli.output import ExitCode, emit, emit_json, note, note_some, only_results_on_stdout, progress
from gircse_rag.errors import plural


@options.with_model_options
def migrate(
    old: Annotated[str, Argument(help="Collection to migrate.")],
    new: Annotated[str, Argument(help="Collection to create.")],
    alias: Annotated[str | None, Option(metavar="NAME", help="Alias to point at NEW once it is complete.")] = None,
    path: options.StorePath = None,
    url: options.StoreUrl = None,
    model: options.ModelOptions = options.DEFAULT,
    as_json: options.AsJson = False,
) -> None:
    """Embed a collection's texts with another model, into a new collection.

    OLD is not changed. After an interruption, run the same command again to continue.
    """
    began = time.monotonic()
    with only_results_on_stdout():
        from gircse_rag.qdrant import migrate, open_client
        from gircse_rag.qdrant.stores import build_index

        with closing(open_client(path, url, create=False)) as client:
            embedder = options.load(model)
            with progress("points") as update:
                try:
                    report = migrate(old, new, embedder=embedder, client=client, alias=alias, progress=update)
                except KeyboardInterrupt:
                    note("interrupted", "all points written so far are kept; run the same command again to continue")
                    raise typer.Exit(ExitCode.INTERRUPTED) from None
            build_index(client, new)
    note_some("failed", [f"{name}: {reason}" for name, reason in report.failed.items()], len(report.failed))
    if report.extra:
        extra = f"{new} has {plural(report.extra, 'point')} that {old} lacks"
        note("warning", f"{extra}; delete the extra points, or migrate to another name")
    if as_json:
        emit_json({"old": old, "new": new, **asdict(report), "seconds": round(time.monotonic() - began, 3)})
    else:
        moved = f"; alias {alias} now points at {new}" if report.alias_moved else ""
        counts = (
            f"{plural(report.points, 'point')}, {report.embedded} embedded ({plural(report.prompt_tokens, 'token')})"
        )
        rest = f"{report.unchanged} unchanged, {len(report.failed)} failed, {time.monotonic() - began:.1f} s{moved}"
        emit(Text(f"{old} to {new}: {counts}, {rest}"))
    if report.failed or (alias is not None and not report.alias_moved):
        raise typer.Exit(ExitCode.INCOMPLETE)
