"""`gircse search`."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from gircse_rag.cli import options
from gircse_rag.cli.output import emit, emit_json, only_results_on_stdout, shortened
from gircse_rag.errors import InputError

if TYPE_CHECKING:
    from gircse_rag.qdrant import Hit


@options.with_model_options
def search(
    question: Annotated[str, typer.Argument(help="In plain words.")],
    collection: options.Collection,
    instruction: Annotated[
        str | None, typer.Option("--instruction", help="What makes a good answer; left out, the checkpoint's own.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Answers at most.")] = 5,
    offset: Annotated[int, typer.Option("--offset", min=0, help="Skip that many of the best: the next page.")] = 0,
    filters: Annotated[
        list[str] | None,
        typer.Option(
            "--filter", metavar="KEY=VALUE", help="Only documents whose metadata say so; a key given twice: either."
        ),
    ] = None,
    min_score: Annotated[float | None, typer.Option("--min-score", help="Leave out answers below this cosine.")] = None,
    group: Annotated[
        int | None,
        typer.Option("--group", min=1, metavar="N", help="At most N answers of a document; --limit documents."),
    ] = None,
    mmr: Annotated[
        float | None,
        typer.Option("--mmr", min=0, max=1, help="Diversity, 0 to 1: answers that repeat others give way."),
    ] = None,
    coarse_to_fine: Annotated[
        bool,
        typer.Option("--coarse-to-fine", help="Answer after one refinement step, then again after 20 (or --steps)."),
    ] = False,
    steps: options.Steps = None,
    path: options.StorePath = None,
    url: options.StoreUrl = None,
    model: options.ModelOptions = options.DEFAULT,
    as_json: options.AsJson = False,
) -> None:
    """Ask a collection a question, under an instruction.

    The table shows how each answer begins; --json has all of it.
    """
    alone = {"--offset": offset or None, "--min-score": min_score, "--group": group, "--mmr": mmr}
    if coarse_to_fine and (others := [name for name, value in alone.items() if value is not None]):
        raise InputError(f"--coarse-to-fine ranks the first answer's candidates again; it does not go with {others[0]}")
    if coarse_to_fine and steps == "auto":
        raise InputError("--coarse-to-fine refines for a number of steps; give --steps one, or leave it out")
    with only_results_on_stdout():
        from gircse_rag.qdrant import open_client, search, search_coarse_to_fine

        wanted = _parse_filters(filters or [])
        with closing(open_client(path, url, create=False)) as client:
            embedder = model.load()
            asked: dict[str, Any] = {
                "collection": collection,
                "embedder": embedder,
                "client": client,
                "instruction": instruction,
                "limit": limit,
                "query_filter": wanted,
            }
            if coarse_to_fine:
                answers = search_coarse_to_fine(question, **asked, **({} if steps is None else {"steps": steps}))
            else:
                more = {"offset": offset, "steps": steps, "min_score": min_score, "group_size": group, "mmr": mmr}
                answers = iter([search(question, **asked, **more)])
            hits = next(answers)
    at_once: dict[str, Any] = {}
    if coarse_to_fine:
        at_once = {"at_once": [asdict(hit) for hit in hits]}
        if not as_json:
            emit("at once, after one refinement step:", _table(hits), "refined:")
        with only_results_on_stdout():
            hits = next(answers)
    if as_json:
        told = instruction or embedder.spec.default_instruction
        head = {"question": question, "instruction": told, "collection": collection}
        emit_json({**head, **at_once, "hits": [asdict(hit) for hit in hits]})
    else:
        emit(_table(hits))


def _table(hits: list[Hit]) -> Table:
    table = Table("score", "document", "text", show_lines=True)
    for hit in hits:
        table.add_row(f"{hit.score:.4f}", Text(hit.document or ""), Text(shortened(hit.text, 200)))
    return table


def _parse_filters(given: list[str]) -> dict[str, Any] | None:
    """Values that read as JSON numbers, booleans or strings are those, and any other is a string as it stands."""
    wanted: dict[str, Any] = {}
    for item in given:
        key, separator, text = item.partition("=")
        if not key or not separator:
            raise InputError(f"--filter {item!r} is not KEY=VALUE, such as --filter kind=animal")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        if not isinstance(value, str | int | float):
            value = text
        wanted.setdefault(key, []).append(value)
    return {key: values[0] if len(values) == 1 else values for key, values in wanted.items()} or None
