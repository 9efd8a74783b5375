"""Score instructions on a collection: behind `gircse compare-instructions` and the playground."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from qdrant_client import QdrantClient

from gircse_rag.adaptation.instructions import DEPTH, Asked, score_hits
from gircse_rag.adaptation.scoring import Ranking
from gircse_rag.embedder import Embedder
from gircse_rag.qdrant import search_batch


class _BareEmbedder(Embedder):
    """Embeds questions as documents are embedded, without an instruction."""

    def embed(self, texts: Any, role: Any = "query", instruction: Any = None, **choices: Any) -> Any:
        return super().embed(texts, role="document", **choices)


def compare(
    asked: Sequence[Asked],
    wordings: Sequence[str],
    *,
    collection: str,
    embedder: Embedder,
    client: QdrantClient,
    steps: Any = None,
) -> dict[str, Any]:
    """Search a collection with the bare questions and with each wording, and score the hits.

    Returns:
        `questions` (their number), `best` (the wording of the best nDCG@10; None is the bare question) and
        `instructions`: one row per wording, the bare question (None) first, with a mean and 95% interval per metric,
        and the paired difference in nDCG@10 to the bare question as `lead`.

    Raises:
        InputError, SpecMismatchError, StoreError: as `search_batch`.
        MissingExtraError: pytrec-eval-terrier is not installed.
    """
    rankings: dict[str | None, Ranking] = {}
    for wording in (None, *dict.fromkeys(wordings)):
        chosen = embedder
        if wording is None:
            chosen = _BareEmbedder(embedder.backend, embedder.backend_tokenizer, embedder.spec, embedder.rotation)
        hits = search_batch(
            [question.text for question in asked],
            collection=collection,
            embedder=chosen,
            client=client,
            instruction=wording,
            steps=steps,
            limit=DEPTH,
        )
        rankings[wording] = score_hits(asked, [[(hit.document, hit.text) for hit in found] for found in hits])
    best = max(rankings, key=lambda wording: rankings[wording].interval("ndcg@10").value)
    rows = [_row(wording, ranking, rankings[None]) for wording, ranking in rankings.items()]
    return {"questions": len(asked), "best": best, "instructions": rows}


def _row(instruction: str | None, ranking: Ranking, bare: Ranking) -> dict[str, Any]:
    scores = {metric: asdict(ranking.interval(metric)) for metric in ranking.values}
    return {"instruction": instruction, **scores, "lead": asdict(ranking.gain(bare, "ndcg@10"))}
