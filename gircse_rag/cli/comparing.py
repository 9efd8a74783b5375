"""`gircse compare-instructions`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

from rich.table import Table
from rich.text import Text
from typer import Argument, Option

from gircse_rag.cli import options
from gircse_rag.cli.output import emit, emit_json, note_some, only_results_on_stdout
from gircse_rag.errors import InputError, require
from gircse_rag.prompts import resolve_instruction

_BARE = "none: the bare question"


@options.with_model_options
def compare_instructions(
    pairs: Annotated[
        Path, Argument(metavar="PAIRS", help="Questions with their document ids or passages: CSV, JSONL or JSON.")
    ],
    collection: options.Collection,
    instruction: Annotated[
        list[str] | None,
        Option(help="Instruction, or a known one's name; repeatable (default: the model's)."),
    ] = None,
    steps: options.Steps = None,
    path: options.StorePath = None,
    url: options.StoreUrl = None,
    model: options.ModelOptions = options.DEFAULT,
    as_json: options.AsJson = False,
) -> None:
    """Compare instructions on your questions, without training.

    Searches a collection with each instruction, and with the bare question.
    The lead is the paired difference to the bare question, with its 95% interval.
    """
    with only_results_on_stdout():
        require("pytrec_eval", "eval")
        from gircse_rag.adaptation.instructions import group_pairs
        from gircse_rag.adaptation.pairs import read_pairs
        from gircse_rag.qdrant import open_client
        from gircse_rag.serving.comparing import compare

        asked, skipped = group_pairs(read_pairs(pairs))
        if not asked:
            raise InputError(f"{pairs} holds no question with an answer{f': {skipped[0]}' if skipped else ''}")
        with closing(open_client(path, url, create=False)) as client:
            embedder = options.load(model)
            wordings = [resolve_instruction(text) for text in instruction or [embedder.spec.default_instruction]]
            result = compare(asked, wordings, collection=collection, embedder=embedder, client=client, steps=steps)
    note_some("skipped", skipped, len(skipped))
    if as_json:
        emit_json(result)
    else:
        emit(_table(result["instructions"], len(asked)), Text(f"best nDCG@10: {result['best'] or _BARE}"))


def _table(rows: Sequence[dict[str, Any]], questions: int) -> Table:
    table = Table("instruction", "nDCG@10", "MRR@10", "hit@1", "lead in nDCG@10", show_lines=True)
    table.title, table.title_justify = Text(f"{questions} questions, x 100"), "left"
    for row in rows:
        lead = row["lead"]
        interval = f"{100 * lead['value']:+.1f} ({100 * lead['low']:+.1f} to {100 * lead['high']:+.1f})"
        cells = [f"{100 * row[metric]['value']:.1f}" for metric in ("ndcg@10", "mrr@10", "hit@1")]
        table.add_row(Text(row["instruction"] or _BARE), *cells, interval if row["instruction"] else "")
    return table
