"""`gircse verify`."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import asdict
from typing import Annotated

import typer
from rich.text import Text
from typer import Option

from gircse_rag.cli import options
from gircse_rag.cli.output import ExitCode, emit, emit_json, note, note_some, only_results_on_stdout, progress


def verify(
    collection: options.Collection,
    path: options.StorePath = None,
    url: options.StoreUrl = None,
    repair: Annotated[
        bool, Option("--repair", help="Mark what differs, so that the next ingest embeds and writes it again.")
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Compare a collection with the checksums that were stored with it.

    Reads every point once, and needs no model. Do not run it while something writes to the collection.
    """
    began = time.monotonic()
    with only_results_on_stdout():
        from gircse_rag.qdrant import open_client, verify

        with closing(open_client(path, url, create=False, repair=repair)) as client, progress("points") as update:
            report = verify(collection, client, repair=repair, progress=update)
    note_some("damaged", report.damaged, len(report.damaged))
    if report.unchecked:
        note("note", f"{report.unchecked} points have no checksums: a version before them wrote these points")
    if not report.vectors_checked:
        note("note", "vectors were not compared: the collection stores them in less than 32 bits")
    if as_json:
        emit_json({"collection": collection, **asdict(report), "seconds": round(time.monotonic() - began, 3)})
    else:
        found = f"{len(report.damaged)} damaged" if report.damaged else "all as written"
        repaired = f", {report.repaired} repaired" if repair else ""
        counts = f"{report.points} points of {report.documents} documents: {found}{repaired}"
        emit(Text(f"{collection}: {counts}; {report.foreign} points of other tools, {time.monotonic() - began:.1f} s"))
    if report.damaged:
        if any(damage.document or damage.point for damage in report.damaged):
            first = "" if repair else "run this command again with --repair, then "
            note("next", f"{first}ingest these documents again, with the command that brought them")
        raise typer.Exit(ExitCode.INCOMPLETE)
