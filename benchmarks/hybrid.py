"""Does a sparse vector from the model's own distributions help retrieval? nDCG@10 of dense, sparse, and both by RRF.

    python benchmarks/hybrid.py ../shared/data/eval --sets covid_faq xquad_en --output benchmarks/results/hybrid.json

    soft      mean over k of the 256 heaviest weights of softmax(head h_k): what the soft tokens are made of
    prompt    max over the prompt's positions of log(1 + relu(logit)), SPLADE's way (Formal et al., 2021); the query's
              instruction is left out of the maximum
    bm25      of the words: what a lexical vector that owes nothing to the model would add

Even queries choose weighting and the constant of reciprocal rank fusion (one choice for all sets), odd ones are scored.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix

from gircse_rag import Embedder
from gircse_rag.backends.base import Refinement, Request
from gircse_rag.checkpoint import load_hf
from gircse_rag.evaluation.loading import load_sets
from gircse_rag.evaluation.metrics import retrieval_metrics
from gircse_rag.evaluation.sets import RetrievalSet
from gircse_rag.tokens import encode

HEAVIEST = 256
WEIGHTS = {"w": lambda w: w, "sqrt w": np.sqrt, "log(1+1000w)": lambda w: np.log1p(1000 * w)}
CONSTANTS = (2, 60)
_plain: list[Any] = []


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--sets", nargs="+", default=["covid_faq", "xquad_en"])
    arguments.add_argument("--model", default="smollm2-135m")
    arguments.add_argument("--output", type=Path)
    given = arguments.parse_args()
    embedder = Embedder.from_pretrained(given.model, dtype="float32")
    runs: dict[str, dict[tuple[Any, ...], np.ndarray]] = {}
    sets = {s.name: s for s in load_sets(given.folder, [f"retrieval/{name}" for name in given.sets])}
    for name, data in sets.items():
        assert isinstance(data, RetrievalSet)
        runs[name] = ndcg(embedder, data)
    chosen = {}
    for kind in ("soft", "prompt", "bm25"):
        options = [key for key in next(iter(runs.values())) if key[0] == f"dense + {kind}"]
        chosen[kind] = max(options, key=lambda key: np.mean([run[key][::2].mean() for run in runs.values()]))
    result = {}
    for name, run in runs.items():
        rows = {"dense": run["dense",][1::2]}
        for kind, key in chosen.items():
            rows[kind] = run[(kind, key[1])][1::2]
            rows[f"dense + {kind}"] = run[key][1::2]
        result[name] = {label: round(100 * float(values.mean()), 2) for label, values in rows.items()}
        result[name]["queries"] = len(rows["dense"])
    report = {"model": given.model, "chosen": {kind: list(key[1:]) for kind, key in chosen.items()}, "ndcg@10": result}
    print(json.dumps(report, indent=2))
    if given.output:
        given.output.write_text(json.dumps(report, indent=2) + "\n")


def ndcg(embedder: Embedder, data: RetrievalSet) -> dict[tuple[Any, ...], np.ndarray]:
    """(what, weighting, constant) -> nDCG@10 a query."""
    sides = [represent(embedder, block.texts, block.role, block.instruction) for block in data.blocks.values()]
    (q_dense, q_sparse), (d_dense, d_sparse) = sides
    dense = q_dense @ d_dense.T
    found: dict[tuple[Any, ...], np.ndarray] = {("dense",): score(data, dense)}
    for kind in q_sparse:
        for name, weight in WEIGHTS.items() if kind == "soft" else {"as it is": lambda w: w}.items():
            for idf in (False, True):
                queries, documents = q_sparse[kind].copy(), d_sparse[kind].copy()
                queries.data, documents.data = weight(queries.data), weight(documents.data)
                if kind == "bm25":
                    documents = saturated(documents)
                if idf:
                    df = np.asarray((documents > 0).sum(axis=0)).ravel()
                    queries = queries.multiply(np.log(1 + (documents.shape[0] - df + 0.5) / (df + 0.5))).tocsr()
                lexical = np.asarray((queries @ documents.T).todense())
                found[(kind, (name, idf))] = score(data, lexical)
                for constant in CONSTANTS:
                    fused = 1 / (constant + ranks(dense)) + (lexical > 0) / (constant + ranks(lexical))
                    found[(f"dense + {kind}", (name, idf), constant)] = score(data, fused)
    return found


def represent(embedder: Embedder, texts: Any, role: str, instruction: str | None) -> tuple[np.ndarray, dict[str, Any]]:
    """(n, d) vectors, and the sparse matrices (n, V)."""
    prompts = [encode(embedder.tokenizer, embedder.spec, t, role=role, instruction=instruction) for t in texts]
    head = len(encode(embedder.tokenizer, embedder.spec, "a", role=role, instruction=instruction).token_ids) - 1
    requests = [Request(p.token_ids, embedder.spec.document_steps, soft_tokens=HEAVIEST) for p in prompts]
    vectors = np.zeros((len(texts), embedder.dimension), dtype=np.float32)
    soft: list[dict[int, float]] = [{} for _ in texts]
    for position, outcome in embedder.backend.refine(requests):
        assert isinstance(outcome, Refinement) and outcome.soft_tokens is not None
        vectors[position] = outcome.vector
        for step in outcome.soft_tokens:
            for token, weight in step:
                soft[position][token] = soft[position].get(token, 0.0) + weight / outcome.steps
    model = load_hf("smollm2-135m", dtype=torch.float32)[0].eval() if not _plain else _plain[0]
    _plain[:] = [model]
    prompt = [splade(model, p.token_ids, head if role != "document" else 0) for p in prompts]
    words = [{hash(w) % 2**20: float(c) for w, c in Counter(re.findall(r"\w+", t.lower())).items()} for t in texts]
    return vectors, {"soft": matrix(soft, 2**17), "prompt": matrix(prompt, 2**17), "bm25": matrix(words, 2**20)}


@torch.inference_mode()
def splade(model: Any, ids: tuple[int, ...], skip: int) -> dict[int, float]:
    logits = model(torch.tensor([ids])).logits[0, min(skip, len(ids) - 1) :]
    heaviest = torch.log1p(torch.relu(logits)).amax(dim=0).topk(HEAVIEST)
    return dict(zip(heaviest.indices.tolist(), heaviest.values.tolist(), strict=True))


def matrix(rows: list[dict[int, float]], width: int) -> csr_matrix:
    data = [w for row in rows for w in row.values()]
    columns = [token for row in rows for token in row]
    ends = np.cumsum([0, *(len(row) for row in rows)])
    return csr_matrix((np.array(data), np.array(columns), ends), shape=(len(rows), width))


def saturated(counts: csr_matrix, k: float = 0.9, b: float = 0.4) -> csr_matrix:
    """BM25's share of a document, without the idf."""
    lengths = np.asarray(counts.sum(axis=1)).ravel()
    norm = k * (1 - b + b * lengths / lengths.mean())
    made = counts.copy()
    made.data = made.data * (k + 1) / (made.data + np.repeat(norm, np.diff(made.indptr)))
    return made


def ranks(scores: np.ndarray) -> np.ndarray:
    order = np.argsort(-scores, axis=1, kind="stable")
    made = np.empty_like(order)
    np.put_along_axis(made, order, np.arange(scores.shape[1])[None, :] + 1, axis=1)
    return made


def score(data: RetrievalSet, scores: np.ndarray) -> np.ndarray:
    best = np.argsort(-scores, axis=1, kind="stable")[:, :100]
    run = {
        query: {data.document_ids[column]: float(scores[row, column]) for column in best[row]}
        for row, query in enumerate(data.query_ids)
    }
    values = retrieval_metrics(data.qrels, run)["ndcg@10"]
    assert len(values) == len(data.query_ids) and not math.isnan(values.mean())
    return np.asarray(values)


if __name__ == "__main__":
    main()
