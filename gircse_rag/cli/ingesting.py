"""`gircse ingest`."""

from __future__ import annotations

import os
import time
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.text import Text
from typer import Argument, Option

from gircse_rag.cli import options
from gircse_rag.cli.output import ExitCode, emit, emit_json, note, note_some, only_results_on_stdout, progress
from gircse_rag.errors import plural

if TYPE_CHECKING:
    from gircse_rag.qdrant import IngestReport, Progress

_SOURCE = "Name of the documents' source, for --sync (default: the absolute paths)."


@options.with_model_options
def ingest(
    paths: Annotated[list[str], Argument(metavar="PATH", help="Files and folders (docs/guides/documents.md).")],
    collection: options.Collection,
    path: options.StorePath = None,
    url: options.StoreUrl = None,
    engine: Annotated[
        Literal["local", "edge"] | None,
        Option("--store", help="Type of a new embedded store; edge has an index (default: local)."),
    ] = None,
    sync: Annotated[bool, Option("--sync", help="Delete documents that the source no longer has.")] = False,
    dry_run: Annotated[bool, Option("--sync-dry-run", help="Report what --sync would change; write nothing.")] = False,
    source: Annotated[str | None, Option(metavar="NAME", help=_SOURCE)] = None,
    text_field: Annotated[str, Option(metavar="NAME", help="Column or JSON field that holds the text.")] = "text",
    id_field: Annotated[str | None, Option(metavar="NAME", help="Column or JSON field of ids (default: `id`).")] = None,
    follow_symlinks: Annotated[
        bool, Option("--follow-symlinks", help="Follow symbolic links that lead out of their folder.")
    ] = False,
    chunk_by: Annotated[
        Literal["tokens", "sentences", "headings"], Option(help="Boundaries at which documents are cut.")
    ] = "tokens",
    chunk_tokens: Annotated[
        int | None, Option(metavar="N", help="Maximum tokens per chunk (default: as many as the model reads).")
    ] = None,
    chunk_overlap: Annotated[
        int, Option(metavar="N", min=0, help="Tokens that a chunk repeats from the one before it.")
    ] = 0,
    language: options.Language = None,
    indexes: Annotated[
        list[str] | None,
        Option(
            "--index", metavar="KEY=KIND", help="Payload index for filters by a metadata key, such as kind=keyword."
        ),
    ] = None,
    runner: Annotated[
        Literal["local", "ray"],
        Option(help="ray uses several processes or machines and needs a server (docs/operate/scale.md)."),
    ] = "local",
    workers: Annotated[int, Option(metavar="N", min=1, help="Embedding processes, with --runner ray.")] = 2,
    model: options.ModelOptions = options.DEFAULT,
    as_json: options.AsJson = False,
) -> None:
    """Ingest documents into a Qdrant collection.

    Unchanged documents are not embedded again.
    Documents that cannot be read or embedded are reported and skipped.
    """
    started = time.monotonic()
    with only_results_on_stdout():
        from gircse_rag.documents.chunking import Chunker
        from gircse_rag.documents.readers import count_documents
        from gircse_rag.errors import InputError
        from gircse_rag.qdrant import ingest, open_client, read_documents
        from gircse_rag.qdrant.ingestion.ray_runner import ingest_on_ray
        from gircse_rag.qdrant.ingestion.sync import DRY_RUN, is_read_error
        from gircse_rag.qdrant.stores import build_index, open_to_read

        if runner == "ray" and (path or not (url or os.environ.get("QDRANT_URL"))):
            reason = "--runner ray runs several processes, and only one can open an embedded store"
            raise InputError(f"{reason}; run a Qdrant server and give its --url")
        fields: dict[str, Any] = {"text_field": text_field, "id_field": id_field, "follow_symlinks": follow_symlinks}
        documents = read_documents(paths, **fields)
        load = partial(options.load, model, lazy=True)
        make_chunker = partial(Chunker, by=chunk_by, max_tokens=chunk_tokens, overlap=chunk_overlap)
        done = 0
        with progress("documents") as update:
            total = count_documents(paths, **fields)

            def report_progress(state: Progress) -> None:
                nonlocal done
                done = state.documents
                update(state.finished, total)

            arguments: dict[str, Any] = {  # of both runners
                "collection": collection,
                "progress": report_progress,
                "language": language,
                "indexes": options.parse_indexes(indexes or []),
                "source": source or ", ".join(sorted(str(Path(item).resolve()) for item in paths)),
                "sync": "dry-run" if dry_run else sync,
            }
            try:
                if runner == "ray":
                    report = ingest_on_ray(
                        partial(read_documents, [str(Path(item).absolute()) for item in paths], **fields),
                        embedder=load,
                        client=partial(open_client, url=url),
                        workers=workers,
                        gpus=int(model.device == "cuda"),
                        chunker=make_chunker,
                        **arguments,
                    )
                else:
                    store = open_to_read(path, url) if dry_run else open_client(path, url, engine=engine)
                    with closing(store) as client:
                        embedder = load()
                        chunker = make_chunker(embedder.backend_tokenizer, embedder.spec)
                        report = ingest(documents, embedder=embedder, client=client, chunker=chunker, **arguments)
                        if not dry_run:
                            build_index(client, collection)
            except KeyboardInterrupt:
                note("interrupted", f"{plural(done, 'document')} stored; run the same command again to continue")
                raise typer.Exit(ExitCode.INTERRUPTED) from None
    note_some("failed", report.failed, len(report.failed))
    note_some("skipped", report.skipped, len(report.skipped))
    note_some("duplicate", report.duplicates, report.duplicated)
    if dry_run:
        note_some("would add", report.to_add, len(report.to_add))
        note_some("would update", report.to_update, len(report.to_update))
    deletes = report.kept_because is None or report.kept_because == DRY_RUN
    note_some(("would delete" if dry_run else "removed") if deletes else "gone", report.gone, len(report.gone))
    if report.gone and not deletes:
        note("note", f"nothing {'would be' if dry_run else 'was'} deleted: {report.kept_because}")
    if as_json:
        emit_json({"collection": collection, **asdict(report), "seconds": round(time.monotonic() - started, 3)})
    else:
        summary = _dry_run_summary(report, deletes) if dry_run else _summary(report, time.monotonic() - started)
        emit(Text(f"{collection}: {summary}"))
    if report.failed or any(is_read_error(skipped) for skipped in report.skipped):
        raise typer.Exit(ExitCode.INCOMPLETE)
    if not report.documents:
        note("error", "no documents found")
        raise typer.Exit(ExitCode.INCOMPLETE)


def _dry_run_summary(report: IngestReport, deletes: bool) -> str:
    return (
        f"would add {len(report.to_add)}, update {len(report.to_update)}, delete {len(report.gone) if deletes else 0}; "
        f"{report.unchanged} unchanged, {len(report.failed)} failed, {len(report.skipped)} skipped; "
        f"{plural(report.to_embed, 'chunk')} to embed; nothing was written"
    )


def _summary(report: IngestReport, seconds: float) -> str:
    removed = f"{report.removed} removed, " if report.gone else ""
    return (
        f"{report.added} added, {report.updated} updated, {report.unchanged} unchanged, {removed}"
        f"{len(report.failed)} failed, {len(report.skipped)} skipped; {plural(report.embedded, 'chunk')} embedded "
        f"({plural(report.prompt_tokens, 'token')}), {seconds:.1f} s"
    )
