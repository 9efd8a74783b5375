"""Adapt the model to each retrieval set of a folder, and print a row per set.

    python -m benchmarks.adapt DATA/dev_retrieval --out runs/adapt [--sets bank_faq,unix_faq] [--minutes 10]
    python -m benchmarks.adapt DATA/dev_retrieval --out runs/self_pairs --self-pairs

A set is a folder of corpus.jsonl, queries.jsonl and qrels.tsv. Its questions are pairs of the documents that qrels.tsv
judges relevant. Of 334 questions, 200 train, 50 choose the weights and 84 are held out: the row is the report on those.
With `--self-pairs` the model is adapted to the documents alone, and all of the 334 questions are asked.
Run again, it goes on with the sets that are not finished.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

import numpy as np

from gircse_rag import Adapted, Embedder, adapt
from gircse_rag.adaptation.inputs import Inputs
from gircse_rag.adaptation.lexical import Lexical
from gircse_rag.adaptation.measuring import Measured
from gircse_rag.adaptation.report import show_interval
from gircse_rag.adaptation.scoring import Interval, Ranking
from gircse_rag.adaptation.vectors import StoredVectors
from gircse_rag.documents import Document
from gircse_rag.evaluation.formats import read_retrieval
from gircse_rag.evaluation.vectors import FromEmbedder
from gircse_rag.prompts import DEFAULT_INSTRUCTION

QUESTIONS = 334
K = 5

Rankings = dict[tuple[str, int], Ranking]


def read_set(folder: Path) -> tuple[list[Document], list[dict[str, str]]]:
    """Documents and pairs of a retrieval set."""
    data = read_retrieval(folder, f"retrieval/{folder.name}", DEFAULT_INSTRUCTION, None)
    documents = [Document(name, text) for name, text in zip(data.document_ids, data.document_texts, strict=True)]
    asked = list(zip(data.query_ids, data.query_texts, strict=True))[:QUESTIONS]
    pairs = [
        {"question": text, "document": document}
        for query, text in asked
        for document, relevant in data.qrels.get(query, {}).items()
        if relevant > 0
    ]
    return documents, pairs


def ask(model: str, documents: list[Document], pairs: list[dict[str, str]], folder: Path) -> Rankings:
    """Rank all chunks for all questions with a model; the vectors stay in `folder`."""
    with Embedder.from_pretrained(model) as embedder:
        inputs = Inputs.read(documents, pairs, embedder, ())
        lexical = Lexical(inputs.corpus.chunks)
        by_words = np.stack([lexical.scores(question.text) for question in inputs.questions])
        store = StoredVectors(folder, FromEmbedder(embedder), embedder.fingerprint)
        measured = Measured(inputs, store, np.arange(len(inputs.corpus.chunks)), by_words, (K,))
        return measured.rank(measured.ask(inputs.questions), range(len(inputs.questions)))


def main(arguments: list[str] | None = None) -> None:
    """Adapt to each set and print its row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sets", help="names, separated by commas (default: all)")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--self-pairs", action="store_true", help="adapt to the documents alone")
    chosen = parser.parse_args(arguments)
    names = chosen.sets.split(",") if chosen.sets else sorted(path.name for path in chosen.folder.iterdir())
    print(
        "| set | train | asked | nDCG@10 before | after | gain | hybrid before | after | probes | wall s | CPU s | GB |"
    )
    print("|---|---:|---:|---|---|---|---:|---:|---|---:|---:|---:|", flush=True)
    for name in names:
        documents, pairs = read_set(chosen.folder / name)
        out, cpu = chosen.out / name, time.process_time()
        given = {"self_pairs": True} if chosen.self_pairs else {"pairs": pairs}
        result = adapt(documents, **given, out=out, model=chosen.model, minutes=chosen.minutes, steps=(K,))
        cpu = time.process_time() - cpu
        if chosen.self_pairs:
            before, after = (
                ask(model, documents, pairs, chosen.out / f"{name}-vectors")
                for model in (chosen.model, str(out) if result.changed else chosen.model)
            )
            lines = [_compare(before[kind, K], after[kind, K]) for kind in ("dense", "hybrid")]
            count = len(before["dense", K].ranks)
        else:
            changes = [result.change("ndcg@10", kind, K) for kind in ("dense", "hybrid")]
            lines = [(change.before, change.after, change.gain) for change in changes]
            count = result.counts["held_out"]
        print(_row(name, result, lines, count, cpu), flush=True)


def _compare(before: Ranking, after: Ranking) -> tuple[Interval, Interval, Interval]:
    return before.interval("ndcg@10"), after.interval("ndcg@10"), after.gain(before, "ndcg@10")


def _row(name: str, result: Adapted, lines: list[tuple[Interval, Interval, Interval]], asked: int, cpu: float) -> str:
    (before, after, gain), (hybrid_before, hybrid_after, _) = lines
    cells = [
        name,
        result.counts["train"],
        asked,
        f"{100 * before.value:.1f}",
        f"{100 * after.value:.1f}",
        show_interval(gain, "+"),
        f"{100 * hybrid_before.value:.1f}",
        f"{100 * hybrid_after.value:.1f}",
        f"{result.probes[0]:.3f} to {result.probes[1]:.3f}",
        f"{result.seconds:.0f}",
        f"{cpu:.0f}",
        f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f}",
    ]
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    main()
