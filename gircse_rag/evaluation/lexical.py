"""BM25 over the texts of a retrieval set, as `gircse_rag.qdrant` computes it, and its fusion with a dense run."""

from __future__ import annotations

import math
from collections import defaultdict

from gircse_rag.evaluation.metrics import RANKED, Run
from gircse_rag.evaluation.sets import RetrievalSet
from gircse_rag.lexical import Bm25Encoder
from gircse_rag.lexical.fusion import fuse


def rank_by_words(data: RetrievalSet) -> Run:
    """Rank the 100 best documents per query by BM25; documents that share no term with the query are left out."""
    encoder = Bm25Encoder()
    postings: defaultdict[int, dict[str, float]] = defaultdict(dict)
    for document, text in zip(data.document_ids, data.document_texts, strict=True):
        for term, weight in encoder.encode_document(text).items():
            postings[term][document] = weight
    run: Run = {}
    for query, text in zip(data.query_ids, data.query_texts, strict=True):
        scores: defaultdict[str, float] = defaultdict(float)
        for term in encoder.encode_question(text):
            if holders := postings.get(term):
                idf = math.log(1 + (len(data.document_ids) - len(holders) + 0.5) / (len(holders) + 0.5))
                for document, weight in holders.items():
                    scores[document] += idf * weight
        run[query] = dict(_best_first(scores)[:RANKED])
    return run


def fuse_runs(dense: Run, lexical: Run, texts: int) -> Run:
    """Fuse two runs over `texts` documents query by query, as hybrid search does."""
    return {
        query: {each.id: each.score for each in fuse(_best_first(scores), _best_first(lexical[query]), texts)}
        for query, scores in dense.items()
    }


def _best_first(scores: dict[str, float]) -> list[tuple[str, float]]:
    return sorted(scores.items(), key=lambda item: -item[1])
