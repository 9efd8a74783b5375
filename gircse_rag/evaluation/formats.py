"""Read each kind of evaluation set from its files, in full or as a small deterministic sample."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gircse_rag.errors import InputError
from gircse_rag.evaluation.records import parse_number, records, resolve, table, texts
from gircse_rag.evaluation.sets import ClusterSet, PairSet, ProbeSet, RetrievalSet

# Documents or training texts kept per query or test text when there is a limit.
CONTEXT_RATIO = 5


def sample(count: int, limit: int | None) -> np.ndarray:
    """Choose the rows that a limit keeps: ascending indices (m,) int64, equal for equal arguments."""
    if limit is None or count <= limit:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).permutation(count)[:limit])


def _select(values: Sequence[str], rows: np.ndarray) -> tuple[str, ...]:
    return tuple(values[int(i)] for i in rows)


def _read_by_id(path: Path, optional: tuple[str, ...] = ()) -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for number, row in records(path, ("_id", "text"), optional):
        if rows.setdefault(row["_id"], row) is not row:
            raise InputError(f"{path}, line {number}: the _id {row['_id']!r} occurs twice")
    return rows


def read_retrieval(path: Path, name: str, instruction: str, limit: int | None) -> RetrievalSet:
    queries = {key: row["text"] for key, row in _read_by_id(path / "queries.jsonl").items()}
    corpus = _read_by_id(path / "corpus.jsonl", ("title",))
    documents = {key: f"{row.get('title', '')} {row['text']}".strip() for key, row in corpus.items()}
    qrels: dict[str, dict[str, int]] = {}
    for number, (query, document, score) in table(path / "qrels.tsv", "qrels"):
        where = f"{resolve(path / 'qrels.tsv')}, line {number}"
        if query not in queries:
            raise InputError(f"{where}: the query {query!r} is not in queries.jsonl")
        if document not in documents:
            raise InputError(f"{where}: the document {document!r} is not in corpus.jsonl")
        grade = parse_number(path / "qrels.tsv", number, score)
        if not grade.is_integer():
            raise InputError(f"{where}: the score is {score}; it must be a whole number, 0 for not relevant")
        qrels.setdefault(query, {})[document] = int(grade)
    # No metric is defined for a query without a relevant document.
    judged = [q for q in queries if max(qrels.get(q, {"": 0}).values()) > 0]
    if not judged:
        raise InputError(f"{path / 'qrels.tsv'}: no query has a relevant document (a score above 0)")
    for query in judged:
        if not queries[query].strip():
            raise InputError(f"{path / 'queries.jsonl'}: the query {query!r} is empty; there is nothing to embed")
    kept = _select(judged, sample(len(judged), limit))
    ids = list(documents)
    if limit is not None:
        relevant = {d for q in kept for d in qrels[q]}
        others = [d for d in ids if d not in relevant]
        room = max(0, CONTEXT_RATIO * limit - len(relevant))
        chosen = relevant | (set(_select(others, sample(len(others), room))) if room else set())
        ids = [d for d in ids if d in chosen]
    nonempty = [d for d in ids if documents[d]]
    return RetrievalSet(
        name=name,
        instruction=instruction,
        query_ids=kept,
        query_texts=tuple(queries[q] for q in kept),
        document_ids=tuple(nonempty),
        document_texts=tuple(documents[d] for d in nonempty),
        qrels={q: qrels[q] for q in kept},
        empty_documents=len(ids) - len(nonempty),
    )


def read_pairs(path: Path, name: str, instruction: str, limit: int | None) -> PairSet:
    first, second, scores = [], [], []
    for number, (score, one, other) in table(path, "sts"):
        if not one.strip() or not other.strip():
            raise InputError(f"{path}, line {number}: a sentence is empty; there is nothing to embed")
        first.append(one)
        second.append(other)
        scores.append(parse_number(path, number, score))
    rows = sample(len(scores), limit)
    if len(rows) < 2:
        raise InputError(f"{path}: a correlation needs at least two pairs, found {len(rows)}")
    kept, binary = tuple(scores[int(i)] for i in rows), set(scores) <= {0.0, 1.0}
    if binary and not any(kept):
        where = "the file" if len(kept) == len(scores) else f"the sample of {limit}; increase the limit"
        raise InputError(f"{path}: average precision needs a pair with score 1; there is none in {where}")
    return PairSet(name, instruction, _select(first, rows), _select(second, rows), kept, binary)


def read_probe(path: Path, name: str, instruction: str, limit: int | None) -> ProbeSet:
    parts = {}
    for part, count in (("train", None if limit is None else CONTEXT_RATIO * limit), ("test", limit)):
        rows = [row for _, row in texts(path / f"{part}.jsonl", ("text", "label"))]
        if not rows:
            raise InputError(f"{path / part}.jsonl holds no row")
        kept = sample(len(rows), count)
        parts[part] = (_select([r["text"] for r in rows], kept), _select([r["label"] for r in rows], kept))
    if len(set(parts["train"][1])) < 2:
        raise InputError(f"{path / 'train'}.jsonl: a classifier needs at least two labels")
    return ProbeSet(name, instruction, *parts["train"], *parts["test"])


def read_label_fields(path: Path) -> list[str]:
    first = next(iter(records(path, ("text",))), None)
    fields = [] if first is None else [key for key in first[1] if key != "text"]
    if not fields:
        raise InputError(f"{path}: the first line must hold a text and at least one label field")
    return fields


def read_clusters(path: Path, field: str, name: str, instruction: str, limit: int | None) -> ClusterSet:
    rows = [row for _, row in texts(path, ("text", field))]
    kept = sample(len(rows), limit)
    labels = _select([r[field] for r in rows], kept)
    if len(set(labels)) < 2:
        raise InputError(f"{path}: clustering by {field!r} needs at least two labels")
    return ClusterSet(name, instruction, _select([r["text"] for r in rows], kept), labels)
