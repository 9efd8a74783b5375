"""Adapt the model to each retrieval set of a folder with 200 training questions, and print a row per set.

    python -m benchmarks.adapt DATA/dev_retrieval --out runs/adapt [--sets bank_faq,unix_faq] [--minutes 10]

A set is a folder of corpus.jsonl, queries.jsonl and qrels.tsv. Its questions are pairs of the documents that qrels.tsv
judges relevant. Of 334 questions, 200 train, 50 choose the weights and 84 are held out: the row is the report on those.
Run again, it goes on with the sets that are not finished.
"""

from __future__ import annotations

import argparse
import resource
from pathlib import Path
from typing import Any

from gircse_rag import adapt
from gircse_rag.documents import Document
from gircse_rag.evaluation.formats import read_retrieval
from gircse_rag.prompts import DEFAULT_INSTRUCTION

QUESTIONS = 334


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


def main(arguments: list[str] | None = None) -> None:
    """Adapt to each set and print its row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sets", help="names, separated by commas (default: all)")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--model", default="smollm2-135m")
    chosen = parser.parse_args(arguments)
    names = chosen.sets.split(",") if chosen.sets else sorted(path.name for path in chosen.folder.iterdir())
    print("| set | train | held out | pool | nDCG@10 before | after | gain | probes | seconds | peak GB |")
    print("|---|---:|---:|---:|---|---|---|---|---:|---:|", flush=True)
    for name in names:
        documents, pairs = read_set(chosen.folder / name)
        result = adapt(documents, pairs, out=chosen.out / name, model=chosen.model, minutes=chosen.minutes)
        print(_row(name, result), flush=True)


def _row(name: str, result: Any) -> str:
    line, counts = result.change("ndcg@10", "dense", 5), result.counts
    low, high = 100 * line.gain.low, 100 * line.gain.high
    cells = [
        name,
        counts["train"],
        counts["held_out"],
        counts["pool"],
        f"{100 * line.before.value:.1f}",
        f"{100 * line.after.value:.1f}",
        f"{100 * line.gain.value:+.1f} ({low:+.1f} to {high:+.1f})",
        f"{result.probes[0]:.3f} to {result.probes[1]:.3f}",
        f"{result.seconds:.0f}",
        f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f}",
    ]
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    main()
