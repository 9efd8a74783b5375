"""What does `gircse adapt` gain? Adapt the model to each development set.

    python benchmarks/adapt.py --work runs/adapt [--sets bank_faq,unix_faq] [--minutes 10]
    python benchmarks/adapt.py --work runs/self_pairs --self-pairs --out self_pairs.json

A set is a folder of corpus.jsonl, queries.jsonl and qrels.tsv in DATA/dev_retrieval. Its questions are pairs of the
documents that qrels.tsv judges relevant. Of 334 questions, 200 train, 50 choose the weights and 84 are held out: the
result is the report on those. With `--self-pairs` the model is adapted to the documents alone, and all of the 334
questions are asked.
"""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import report
from gircse_rag import Embedder, adapt
from gircse_rag.adaptation.inputs import Inputs
from gircse_rag.adaptation.lexical import Lexical
from gircse_rag.adaptation.measuring import Measured
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


def measure(arguments: Any, name: str) -> dict[str, Any]:
    """Adapt to one set; scores are x 100, memory is the process's peak."""
    documents, pairs = read_set(arguments.data / "dev_retrieval" / name)
    out = arguments.work / name
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    cpu = time.process_time()
    given: dict[str, Any] = {"self_pairs": True} if arguments.self_pairs else {"pairs": pairs}
    options: dict[str, Any] = {"model": arguments.model, "minutes": arguments.minutes, "dtype": arguments.dtype}
    result = adapt(documents, **given, out=out, steps=(K,), **options)
    cpu = time.process_time() - cpu
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    if arguments.self_pairs:
        before, after = (
            ask(model, documents, pairs, arguments.work / f"{name}-vectors")
            for model in (arguments.model, str(out) if result.changed else arguments.model)
        )
        lines = {kind: _compare(before[kind, K], after[kind, K]) for kind in ("dense", "hybrid")}
        asked = len(before["dense", K].ranks)
    else:
        changes = {kind: result.change("ndcg@10", kind, K) for kind in ("dense", "hybrid")}
        lines = {kind: (change.before, change.after, change.gain) for kind, change in changes.items()}
        asked = result.counts["held_out"]
    return {
        **{key: result.counts[key] for key in ("documents", "chunks", "pool", "train", "rows")},
        "asked": asked,
        "minutes": arguments.minutes,
        "share": result.share,
        **{kind: _percent(line) for kind, line in lines.items()},
        "probes": result.probes,
        "wall_seconds": result.seconds,
        "cpu_seconds": cpu,
        "peak_gb": peak / 2**20,
    }


def _compare(before: Ranking, after: Ranking) -> tuple[Interval, Interval, Interval]:
    return before.interval("ndcg@10"), after.interval("ndcg@10"), after.gain(before, "ndcg@10")


def _percent(line: tuple[Interval, Interval, Interval]) -> dict[str, list[float]]:
    """Value, low and high of each interval."""
    names = ("before", "after", "gain")
    return {name: [100 * x for x in (i.value, i.low, i.high)] for name, i in zip(names, line, strict=True)}


def main(argv: list[str] | None = None) -> None:
    parser = report.parser(__doc__, "adapt")
    parser.add_argument("--work", type=Path, required=True, help="folder for the models, one per set")
    parser.add_argument("--sets", help="names, separated by commas (default: all)")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--self-pairs", action="store_true", help="adapt to the documents alone")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    folders = sorted(path.name for path in (arguments.data / "dev_retrieval").iterdir())
    names = arguments.sets.split(",") if arguments.sets else folders
    results = report.Report(arguments, measure=False)
    for name in names:
        results.part(name, partial(measure, arguments, name))


if __name__ == "__main__":
    main()
