"""Evaluate embeddings at several K: retrieval, STS, classification, clustering and instruction contrast.

    from gircse_rag.evaluation import evaluate

    report = evaluate(embedder, "data/eval", steps=(1, 5, 20), sets=["sts", "retrieval/cranfield"])
    report.save("report.json")

Importing it needs only numpy; scikit-learn, scipy, pytrec_eval and matplotlib (the `eval` extra) load on first use.
"""

from gircse_rag.evaluation.catalogue import load_sets
from gircse_rag.evaluation.evaluate import evaluate
from gircse_rag.evaluation.plots import plot
from gircse_rag.evaluation.results import Report, Score, SetResult
from gircse_rag.evaluation.vectors import EmbedFn

__all__ = ["EmbedFn", "Report", "Score", "SetResult", "evaluate", "load_sets", "plot"]
