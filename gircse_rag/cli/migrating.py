"""`gircse migrate`."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text
from typer import Argument, Option

from gircse_rag.cli import options
from gircse_rag.cli.output import ExitCode, emit, emit_json, note, note_some, only_results_on_stdout, progress
from gircse_rag.errors import InputError, plural


@options.with_model_options
def migrate(
    old: Annotated[str, Argument(help="Collection to migrate.")],
    new: Annotated[str | None, Argument(help="Collection to create.")] = None,
    alias: Annotated[str | None, Option(metavar="NAME", help="Alias to point at NEW once it is complete.")] = None,
    add_lexical: Annotated[
        bool, Option("--add-lexical", help="Give OLD a lexical vector for hybrid search; nothing is embedded.")
    ] = False,
    language: options.Language = None,
    path: options.StorePath = None,
    url: options.StoreUrl = None,
    model: options.ModelOptions = options.DEFAULT,
    as_json: options.AsJson = False,
) -> None:
    """Embed a collection's texts with another model, into a new collection.

    OLD is not changed. After an interruption, run the same command again to continue.
    With --add-lexical, OLD itself gets what hybrid search needs: collections of earlier versions lack it.
    """
    began = time.monotonic()
    if add_lexical:
        if new is not None or alias is not None:
            raise InputError("--add-lexical changes the collection itself; leave out NEW and --alias")
        _add_lexical(old, path, url, language, as_json)
        return
    if new is None:
        raise InputError("give the name of the new collection, or --add-lexical")
    with only_results_on_stdout():
        from gircse_rag.qdrant import migrate, open_client
        from gircse_rag.qdrant.stores import build_index

        with closing(open_client(path, url, create=False)) as client:
            embedder = options.load(model)
            with progress("points") as update:
                try:
                    report = migrate(
                        old, new, embedder=embedder, client=client, alias=alias, progress=update, language=language
                    )
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


def _add_lexical(collection: str, path: Path | None, url: str | None, language: str | None, as_json: bool) -> None:
    began = time.monotonic()
    with only_results_on_stdout():
        from gircse_rag.qdrant import add_lexical, open_client

        with closing(open_client(path, url, create=False)) as client, progress("points") as update:
            try:
                report = add_lexical(collection, client=client, language=language, progress=update)
            except KeyboardInterrupt:
                note("interrupted", "all points written so far are kept; run the same command again to continue")
                raise typer.Exit(ExitCode.INTERRUPTED) from None
    if as_json:
        emit_json({"collection": collection, **asdict(report), "seconds": round(time.monotonic() - began, 3)})
    else:
        counts = f"{report.points} points, {report.encoded} got a lexical vector, {report.without_terms} have no terms"
        emit(Text(f"{collection}: {counts}, {time.monotonic() - began:.1f} s"))
