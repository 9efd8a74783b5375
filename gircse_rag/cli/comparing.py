"""`gircse compare-instructions`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.table import Table
from rich.text import Text
from typer import Argument, Option

from gircse_rag.cli import options
from gircse_rag.cli.output import emit, emit_json, note_some, only_results_on_stdout
from gircse_rag.errors import InputError, require
from gircse_rag.prompts import resolve_instruction

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

    from gircse_rag.adaptation.instructions import Asked
    from gircse_rag.adaptation.scoring import Ranking
    from gircse_rag.embedder import Embedder

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

        asked, skipped = group_pairs(read_pairs(pairs))
        if not asked:
            raise InputError(f"{pairs} holds no question with an answer{f': {skipped[0]}' if skipped else ''}")
        with closing(open_client(path, url, create=False)) as client:
            embedder = options.load(model)
            wordings = [resolve_instruction(text) for text in instruction or [embedder.spec.default_instruction]]
            rankings: dict[str | None, Ranking] = {
                wording: _rank(asked, wording, embedder, client, collection, steps)
                for wording in (None, *dict.fromkeys(wordings))
            }
    note_some("skipped", skipped, len(skipped))
    best = max(rankings, key=lambda wording: rankings[wording].interval("ndcg@10").value)
    rows = [_row(wording, ranking, rankings[None]) for wording, ranking in rankings.items()]
    if as_json:
        emit_json({"questions": len(asked), "best": best, "instructions": rows})
    else:
        emit(_table(rows, len(asked)), Text(f"best nDCG@10: {best or _BARE}"))


def _rank(
    asked: Sequence[Asked],
    instruction: str | None,
    embedder: Embedder,
    client: QdrantClient,
    collection: str,
    steps: Any,
) -> Ranking:
    from gircse_rag.adaptation.instructions import DEPTH, score_hits
    from gircse_rag.embedder import Embedder
    from gircse_rag.qdrant import search_batch

    class Bare(Embedder):
        """Embeds questions as documents are embedded, without an instruction."""

        def embed(self, texts: Any, role: Any = "query", instruction: Any = None, **choices: Any) -> Any:
            return super().embed(texts, role="document", **choices)

    chosen = embedder if instruction is not None else Bare(embedder.backend, embedder.tokenizer, embedder.spec)
    hits = search_batch(
        [question.text for question in asked],
        collection=collection,
        embedder=chosen,
        client=client,
        instruction=instruction,
        steps=steps,
        limit=DEPTH,
    )
    return score_hits(asked, [[(hit.document, hit.text) for hit in found] for found in hits])


def _row(instruction: str | None, ranking: Ranking, bare: Ranking) -> dict[str, Any]:
    scores = {metric: asdict(ranking.interval(metric)) for metric in ranking.values}
    return {"instruction": instruction, **scores, "lead": asdict(ranking.gain(bare, "ndcg@10"))}


def _table(rows: Sequence[dict[str, Any]], questions: int) -> Table:
    table = Table("instruction", "nDCG@10", "MRR@10", "hit@1", "lead in nDCG@10", show_lines=True)
    table.title, table.title_justify = Text(f"{questions} questions, x 100"), "left"
    for row in rows:
        lead = row["lead"]
        interval = f"{100 * lead['value']:+.1f} ({100 * lead['low']:+.1f} to {100 * lead['high']:+.1f})"
        cells = [f"{100 * row[metric]['value']:.1f}" for metric in ("ndcg@10", "mrr@10", "hit@1")]
        table.add_row(Text(row["instruction"] or _BARE), *cells, interval if row["instruction"] else "")
    return table
