"""`gircse ingest`."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.text import Text

from gircse_rag.cli import options
from gircse_rag.cli.output import ExitCode, emit, emit_json, note, note_some, only_results_on_stdout, progress

if TYPE_CHECKING:
    from gircse_rag.qdrant import IngestReport, Progress

Source = Annotated[
    str | None,
    typer.Option(
        "--source", metavar="NAME", help="Where these documents come from, for --sync; left out, the absolute paths."
    ),
]


@options.with_model_options
def ingest(
    paths: Annotated[
        list[str], typer.Argument(metavar="PATH", help="Files and folders of them (docs/guides/documents.md).")
    ],
    collection: options.Collection,
    path: options.StorePath = None,
    url: options.StoreUrl = None,
    engine: Annotated[
        Literal["local", "edge"] | None,
        typer.Option("--store", help="Kind of an embedded store that is made; left out, local. edge has an index."),
    ] = None,
    sync: Annotated[
        bool, typer.Option("--sync", help="Delete the documents that came from here before and are gone.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--sync-dry-run", help="Only tell what --sync would delete.")] = False,
    source: Source = None,
    text_field: Annotated[
        str, typer.Option("--text-field", metavar="NAME", help="What of a row or JSON line is its text.")
    ] = "text",
    id_field: Annotated[
        str | None, typer.Option("--id-field", metavar="NAME", help="What names it; left out, id if it has one.")
    ] = None,
    chunk_by: Annotated[
        Literal["tokens", "sentences", "headings"], typer.Option("--chunk-by", help="Where documents are cut.")
    ] = "tokens",
    chunk_tokens: Annotated[
        int | None, typer.Option("--chunk-tokens", metavar="N", help="At most N a chunk; left out, all that fit.")
    ] = None,
    runner: Annotated[
        Literal["local", "ray"],
        typer.Option("--runner", help="ray: by several processes or machines, into a server (docs/operate/scale.md)."),
    ] = "local",
    workers: Annotated[
        int, typer.Option("--workers", metavar="N", min=1, help="With --runner ray: processes that embed.")
    ] = 2,
    model: options.ModelOptions = options.DEFAULT,
    as_json: options.AsJson = False,
) -> None:
    """Bring documents into a Qdrant collection.

    The same documents again embed nothing. What cannot be read or embedded is named, and the rest goes in.
    """
    began = time.monotonic()
    with only_results_on_stdout():
        from gircse_rag.documents.chunking import Chunker
        from gircse_rag.documents.readers import count_documents
        from gircse_rag.errors import InputError
        from gircse_rag.qdrant import ingest, open_client, read_documents
        from gircse_rag.qdrant.ingestion.ray_runner import ingest_on_ray
        from gircse_rag.qdrant.stores import build_index

        if runner == "ray" and (path or not (url or os.environ.get("QDRANT_URL"))):
            raise InputError(
                "--runner ray writes from several processes, and an embedded store belongs to one; run a Qdrant server "
                "and give its --url"
            )
        fields: dict[str, Any] = {"text_field": text_field, "id_field": id_field}
        documents = read_documents(paths, **fields)
        load = partial(model.load, lazy=True)
        cut = partial(Chunker, by=chunk_by, max_tokens=chunk_tokens)
        done = 0
        with progress("documents") as update:
            total = count_documents(paths, **fields) if update else 0

            def tell(now: Progress) -> None:
                nonlocal done
                done = now.documents
                if update:
                    update(done, total)

            rest: dict[str, Any] = {
                "collection": collection,
                "progress": tell,
                "source": source or _source(paths),
                "sync": "dry-run" if dry_run else sync,
            }
            try:
                if runner == "ray":
                    report = ingest_on_ray(
                        partial(read_documents, [str(Path(path).absolute()) for path in paths], **fields),
                        embedder=load,
                        client=partial(open_client, url=url),
                        workers=workers,
                        gpus=int(model.device == "cuda"),
                        chunker=cut,
                        **rest,
                    )
                else:
                    with closing(open_client(path, url, engine=engine)) as client:
                        embedder = load()
                        chunker = cut(embedder.tokenizer, embedder.spec)
                        report = ingest(documents, embedder=embedder, client=client, chunker=chunker, **rest)
                        build_index(client, collection)
            except KeyboardInterrupt:
                note("interrupted", f"{done} documents are done and safe; the same command goes on from there")
                raise typer.Exit(ExitCode.INTERRUPTED) from None
    note_some("failed", report.failed, len(report.failed))
    note_some("skipped", report.skipped, len(report.skipped))
    note_some("duplicate", report.duplicates, report.duplicated)
    note_some("removed" if report.removed else "gone", report.gone, len(report.gone))
    if report.kept_because and report.gone:
        note("note", f"nothing was removed: {report.kept_because}")
    if as_json:
        emit_json({"collection": collection, **asdict(report), "seconds": round(time.monotonic() - began, 3)})
    else:
        emit(_summary(report, collection, time.monotonic() - began))
    _exit(report)


def _source(paths: Sequence[str]) -> str:
    """A name for the documents of these paths: the same in every run over them, and another for other paths."""
    return ", ".join(sorted(str(Path(path).resolve()) for path in paths))


def _summary(report: IngestReport, collection: str, seconds: float) -> Text:
    removed = f"{report.removed} removed, " if report.gone else ""
    return Text(
        f"{collection}: {report.added} added, {report.updated} updated, {report.unchanged} unchanged, {removed}"
        f"{len(report.failed)} failed, {len(report.skipped)} skipped; {report.embedded} chunks embedded "
        f"({report.prompt_tokens} tokens), {seconds:.1f} s"
    )


def _exit(report: IngestReport) -> None:
    """Leave with the code of a run that did not do all it was asked."""
    from gircse_rag.qdrant.ingestion.sync import is_fault

    if report.failed or any(is_fault(skipped) for skipped in report.skipped):
        raise typer.Exit(ExitCode.INCOMPLETE)
    if not report.added + report.updated + report.unchanged:
        note("error", "there was no document to ingest")
        raise typer.Exit(ExitCode.INCOMPLETE)
