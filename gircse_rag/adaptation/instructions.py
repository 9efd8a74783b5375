"""Compare instructions on the hits of a search, without training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from gircse_rag.adaptation.corpus import normalise
from gircse_rag.adaptation.pairs import Pair, SkippedPair
from gircse_rag.adaptation.scoring import Ranking
from gircse_rag.evaluation.metrics import retrieval_metrics

DEPTH = 20
"""Hits per question: nDCG@10 and MRR@10 need ten documents, and a document may have several chunks among the hits."""


@dataclass
class Asked:
    """A question with the document ids and the passages that answer it."""

    text: str
    documents: set[str]
    passages: set[str]


Found = tuple[str | None, str]
"""A hit: its document's id and its text."""


def group_pairs(pairs: Iterable[Pair | SkippedPair]) -> tuple[list[Asked], list[SkippedPair]]:
    """Join the pairs of equal questions. Instructions of the pairs are ignored."""
    asked: dict[str, Asked] = {}
    skipped = []
    for pair in pairs:
        if isinstance(pair, SkippedPair):
            skipped.append(pair)
            continue
        question = asked.setdefault(normalise(pair.question), Asked(pair.question, set(), set()))
        if pair.document is not None:
            question.documents.add(pair.document)
        else:
            question.passages.add(normalise(pair.passage or ""))
    return list(asked.values()), skipped


def score_hits(questions: Sequence[Asked], hits: Sequence[Sequence[Found]]) -> Ranking:
    """Score the hits of each question, best first.

    A hit answers if its document is the right one, or if it and the passage contain each other. Later chunks of the
    same document do not count as hits.
    """
    run, qrels, ranks = {}, {}, []
    for number, (question, found) in enumerate(zip(questions, hits, strict=True)):
        units = dict.fromkeys(_unit(question, document, text) for document, text in found)
        answers = {f"answer {name}" for name in (*question.documents, *question.passages)}
        places = [place for place, unit in enumerate(units, start=1) if unit in answers]
        ranks.append(places[0] if places else len(units) + 1)
        run[f"{number}"] = {unit: float(-place) for place, unit in enumerate(units)}
        qrels[f"{number}"] = dict.fromkeys(answers, 1)
    values = retrieval_metrics(qrels, run)
    first = np.array(ranks, dtype=np.int64)
    return Ranking(
        {"ndcg@10": values["ndcg@10"], "mrr@10": values["mrr@10"], "hit@1": (values["mrr@10"] == 1) * 1.0}, first
    )


def _unit(question: Asked, document: str | None, text: str) -> str:
    """What a hit counts as: an answer, its document, or itself."""
    if document is not None and (name := _own_name(question, document)) is not None:
        return f"answer {name}"
    said = f" {normalise(text)} "
    for passage in question.passages:
        if f" {passage} " in said or said in f" {passage} ":
            return f"answer {passage}"
    return f"document {document}" if document is not None and not question.passages else f"text {text}"


def _own_name(question: Asked, document: str) -> str | None:
    """The pair's name of a document: its id, or the row's own id after the `#`."""
    return next((name for name in (document, document.rpartition("#")[2]) if name in question.documents), None)
