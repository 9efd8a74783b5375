"""`gircse ingest` and `gircse search`."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from gircse_rag.cli import options
from gircse_rag.cli.output import ExitCode, emit, emit_json, note, only_results_on_stdout, progress, shortened

if TYPE_CHECKING:
    from gircse_rag.qdrant import FailedDocument, IngestReport, Progress, SkippedFile

NAMED_AT_MOST = 20

Collection = Annotated[str, typer.Option("--collection", metavar="NAME", help="The collection in the store.")]
StorePath = Annotated[
    Path | None, typer.Option("--path", metavar="DIR", help="Folder of an embedded store; left out, ./qdrant.")
]
StoreUrl = Annotated[
    str | None, typer.Option("--url", help="Of a Qdrant server; left out, QDRANT_URL. Its key: QDRANT_API_KEY.")
]


def ingest(
    paths: Annotated[list[str], typer.Argument(metavar="PATH", help="Files (.txt, .md, .jsonl) and folders of them.")],
    collection: Collection,
    path: StorePath = None,
    url: StoreUrl = None,
    model: options.Model = options.DEFAULT_MODEL,
    backend: options.Backend = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    as_json: options.AsJson = False,
) -> None:
    """Bring documents into a Qdrant collection.

    The same documents again embed nothing. What cannot be read or embedded is named, and the rest goes in.
    """
    began = time.monotonic()
    with only_results_on_stdout():
        from gircse_rag.qdrant import Document, ingest, open_client, read_documents

        documents = read_documents(paths)
        embedder = options.load(model, backend, device, dtype)
        done = 0
        with closing(open_client(path, url)) as client, progress("documents") as update:
            total = sum(isinstance(found, Document) for found in read_documents(paths)) if update else 0

            def tell(now: Progress) -> None:
                nonlocal done
                done = now.documents
                if update:
                    update(done, total)

            try:
                report = ingest(documents, collection=collection, embedder=embedder, client=client, progress=tell)
            except KeyboardInterrupt:
                note("interrupted", f"{done} documents are done and safe; the same command goes on from there")
                raise typer.Exit(ExitCode.INTERRUPTED) from None
    _name("failed", report.failed)
    _name("skipped", report.skipped)
    if as_json:
        emit_json({"collection": collection, **asdict(report), "seconds": round(time.monotonic() - began, 3)})
    else:
        emit(_summary(report, collection, time.monotonic() - began))
    if report.failed or any(_should_be_a_document(skipped) for skipped in report.skipped):
        raise typer.Exit(ExitCode.INCOMPLETE)
    if not report.added + report.updated + report.unchanged:
        note("error", "there was no document to ingest")
        raise typer.Exit(ExitCode.INCOMPLETE)


def _name(what: str, items: list[SkippedFile] | list[FailedDocument]) -> None:
    for item in items[:NAMED_AT_MOST]:
        note(what, str(item))
    if len(items) > NAMED_AT_MOST:
        note(what, f"and {len(items) - NAMED_AT_MOST} more; --json names them all")


def _should_be_a_document(skipped: SkippedFile) -> bool:
    """A picture between the texts is passed over; a text that cannot be read is a fault."""
    from gircse_rag.qdrant.documents import SUFFIXES

    path = Path(skipped.path)
    return path.suffix.lower() in SUFFIXES or not path.is_file()


def _summary(report: IngestReport, collection: str, seconds: float) -> Text:
    return Text(
        f"{collection}: {report.added} added, {report.updated} updated, {report.unchanged} unchanged, "
        f"{len(report.failed)} failed, {len(report.skipped)} skipped; {report.embedded} chunks embedded "
        f"({report.prompt_tokens} tokens), {seconds:.1f} s"
    )


def search(
    question: Annotated[str, typer.Argument(help="In plain words.")],
    collection: Collection,
    instruction: Annotated[
        str | None, typer.Option("--instruction", help="What makes a good answer; left out, the checkpoint's own.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Answers at most.")] = 5,
    steps: options.Steps = None,
    path: StorePath = None,
    url: StoreUrl = None,
    model: options.Model = options.DEFAULT_MODEL,
    backend: options.Backend = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    as_json: options.AsJson = False,
) -> None:
    """Ask a collection a question, under an instruction.

    The table shows how each answer begins; --json has all of it.
    """
    with only_results_on_stdout():
        from gircse_rag.qdrant import open_client, search

        with closing(open_client(path, url, create=False)) as client:
            embedder = options.load(model, backend, device, dtype)
            hits = search(
                question,
                collection=collection,
                embedder=embedder,
                client=client,
                instruction=instruction,
                limit=limit,
                steps=steps,
            )
    if as_json:
        asked = instruction or embedder.spec.default_instruction
        head = {"question": question, "instruction": asked, "collection": collection}
        emit_json({**head, "hits": [asdict(hit) for hit in hits]})
        return
    table = Table("score", "document", "text", show_lines=True)
    for hit in hits:
        table.add_row(f"{hit.score:.4f}", Text(hit.document or ""), Text(shortened(hit.text, 200)))
    emit(table)
