"""One reader for each kind of set: its files in, the set out, whole or as a small deterministic sample."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gircse_rag.errors import InputError
from gircse_rag.evaluation.records import number_in, records, resolve, table, texts
from gircse_rag.evaluation.sets import ClusterSet, PairSet, ProbeSet, RetrievalSet

# A limited run keeps this many documents and training texts for each query or test text it keeps.
CONTEXT_RATIO = 5


def sample(count: int, limit: int | None) -> np.ndarray:
    """Ascending indices (m,) int64 of the rows that a limited run keeps: the same for the same `count` and `limit`."""
    if limit is None or count <= limit:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).permutation(count)[:limit])


def _keep(values: Sequence[str], rows: np.ndarray) -> tuple[str, ...]:
    return tuple(values[int(i)] for i in rows)


def read_retrieval(path: Path, name: str, instruction: str, limit: int | None) -> RetrievalSet:
    queries: dict[str, str] = {}
    documents: dict[str, str] = {}
    for number, row in records(path / "queries.jsonl", ("_id", "text")):
        if row["_id"] in queries:
            raise InputError(f"{path / 'queries.jsonl'}, line {number}: the _id {row['_id']!r} occurs twice")
        queries[row["_id"]] = row["text"]
    for number, row in records(path / "corpus.jsonl", ("_id", "text"), ("title",)):
        if row["_id"] in documents:
            raise InputError(f"{path / 'corpus.jsonl'}, line {number}: the _id {row['_id']!r} occurs twice")
        documents[row["_id"]] = f"{row.get('title', '')} {row['text']}".strip()
    qrels: dict[str, dict[str, int]] = {}
    for number, (query, document, score) in table(path / "qrels.tsv", "qrels"):
        where = f"{resolve(path / 'qrels.tsv')}, line {number}"
        if query not in queries:
            raise InputError(f"{where}: judges the query {query!r}, which is not in queries.jsonl")
        if document not in documents:
            raise InputError(f"{where}: judges the document {document!r}, which is not in corpus.jsonl")
        grade = number_in(path / "qrels.tsv", number, score)
        if not grade.is_integer():
            raise InputError(f"{where}: the score is {score}; a judgement is a whole number, 0 for not relevant")
        qrels.setdefault(query, {})[document] = int(grade)
    # A query without a relevant document has no score under any metric.
    judged = [q for q in queries if max(qrels.get(q, {"": 0}).values()) > 0]
    if not judged:
        raise InputError(f"{path / 'qrels.tsv'}: no query has a relevant document (a score above 0)")
    for query in judged:
        if not queries[query].strip():
            raise InputError(f"{path / 'queries.jsonl'}: the query {query!r} is empty; there is nothing to embed")
    kept = _keep(judged, sample(len(judged), limit))
    ids = list(documents)
    if limit is not None:
        relevant = {d for q in kept for d in qrels[q]}
        others = [d for d in ids if d not in relevant]
        room = max(0, CONTEXT_RATIO * limit - len(relevant))
        wanted = relevant | (set(_keep(others, sample(len(others), room))) if room else set())
        ids = [d for d in ids if d in wanted]
    filled = [d for d in ids if documents[d]]
    return RetrievalSet(
        name=name,
        instruction=instruction,
        query_ids=kept,
        query_texts=tuple(queries[q] for q in kept),
        document_ids=tuple(filled),
        document_texts=tuple(documents[d] for d in filled),
        qrels={q: qrels[q] for q in kept},
        empty_documents=len(ids) - len(filled),
    )


def read_pairs(path: Path, name: str, instruction: str, limit: int | None) -> PairSet:
    first, second, scores = [], [], []
    for number, (score, one, other) in table(path, "sts"):
        if not one.strip() or not other.strip():
            raise InputError(f"{path}, line {number}: a sentence is empty; there is nothing to embed")
        first.append(one)
        second.append(other)
        scores.append(number_in(path, number, score))
    rows = sample(len(scores), limit)
    if len(rows) < 2:
        raise InputError(f"{path}: a correlation needs two pairs or more, found {len(rows)}")
    kept, binary = tuple(scores[int(i)] for i in rows), set(scores) <= {0.0, 1.0}
    if binary and not any(kept):
        where = "the file" if len(kept) == len(scores) else f"the sample of {limit}; raise the limit"
        raise InputError(f"{path}: no pair has the score 1 in {where}: there is nothing to find")
    return PairSet(name, instruction, _keep(first, rows), _keep(second, rows), kept, binary)


def read_probe(path: Path, name: str, instruction: str, limit: int | None) -> ProbeSet:
    parts = {}
    for part, count in (("train", None if limit is None else CONTEXT_RATIO * limit), ("test", limit)):
        rows = [row for _, row in texts(path / f"{part}.jsonl", ("text", "label"))]
        if not rows:
            raise InputError(f"{path / part}.jsonl holds no row")
        kept = sample(len(rows), count)
        parts[part] = (_keep([r["text"] for r in rows], kept), _keep([r["label"] for r in rows], kept))
    if len(set(parts["train"][1])) < 2:
        raise InputError(f"{path / 'train'}.jsonl: a classifier needs two labels or more")
    return ProbeSet(name, instruction, *parts["train"], *parts["test"])


def read_label_fields(path: Path) -> list[str]:
    first = next(iter(records(path, ("text",))), None)
    fields = [] if first is None else [key for key in first[1] if key != "text"]
    if not fields:
        raise InputError(f"{path}: the first line must hold a text and one or more label fields")
    return fields


def read_clusters(path: Path, field: str, name: str, instruction: str, limit: int | None) -> ClusterSet:
    rows = [row for _, row in texts(path, ("text", field))]
    kept = sample(len(rows), limit)
    labels = _keep([r[field] for r in rows], kept)
    if len(set(labels)) < 2:
        raise InputError(f"{path}: clustering by {field!r} needs two labels or more")
    return ClusterSet(name, instruction, _keep([r["text"] for r in rows], kept), labels)
