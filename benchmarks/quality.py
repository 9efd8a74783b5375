"""Do bfloat16 and the engine give the same results as the float32 reference? Tested on two retrieval sets.

    python benchmarks/quality.py --cache quality.npz

Measures the bfloat16 reference, the bfloat16 engine and the float32 engine: overlap of each query's ten nearest
documents with those of the float32 reference, nDCG@10, cosine, and largest difference of vectors. Goal: in bfloat16 the
engine's overlap is within 0.01, and its nDCG within 0.3, of the bfloat16 reference. K is the checkpoint's default.
--cache stores vectors, so an interrupted run continues. Needs no idle machine. The reference embeds one text at a time.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import machine, report
from gircse_rag import Embedder
from gircse_rag.backends.loading import BackendName
from gircse_rag.evaluation import load_sets
from gircse_rag.evaluation.metrics import rank, retrieval_metrics
from gircse_rag.evaluation.sets import RetrievalSet
from gircse_rag.files import atomic_write

Array = NDArray[np.float32]
REFERENCE = "float32 reference"
KINDS: dict[str, tuple[BackendName, str]] = {
    REFERENCE: ("reference", "float32"),
    "bfloat16 reference": ("reference", "bfloat16"),
    "bfloat16 paged": ("paged", "bfloat16"),
    "float32 paged": ("paged", "float32"),
}
TOP = 10


class Cache:
    """Named arrays in one npz file, or only in memory."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._arrays: dict[str, Array] = {}
        if path is not None and path.exists():
            with np.load(path) as stored:
                self._arrays = dict(stored)

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def __getitem__(self, name: str) -> Array:
        return self._arrays[name]

    def __setitem__(self, name: str, array: Array) -> None:
        self._arrays[name] = array
        if self._path is not None:
            with atomic_write(self._path) as scratch, scratch.open("wb") as file:
                np.savez(file, **self._arrays)  # type: ignore[arg-type]


def embed_all(sets: list[RetrievalSet], arguments: Any, cache: Cache) -> None:
    """Compute the vectors of every kind and set, with one model in memory at a time."""
    for kind, (backend, dtype) in KINDS.items():
        missing = [
            (f"{arguments.model}|{kind}|{one.name}|{side}|{len(block.texts)}", block)
            for one in sets
            for side, block in one.blocks.items()
        ]
        missing = [(name, block) for name, block in missing if name not in cache]
        if not missing:
            continue
        with Embedder.from_pretrained(arguments.model, backend=backend, dtype=dtype, device="cpu") as embedder:
            for name, block in missing:
                seconds = machine.timed(partial(embed, embedder, cache, name, block))["wall"]
                print(f"{name}: {len(block.texts)} texts in {seconds:.0f} s", flush=True)


def embed(embedder: Embedder, cache: Cache, name: str, block: Any) -> None:
    cache[name] = embedder.embed(list(block.texts), role=block.role, instruction=block.instruction).vectors


def vectors(one: RetrievalSet, kind: str, arguments: Any, cache: Cache) -> dict[str, Array]:
    return {
        side: cache[f"{arguments.model}|{kind}|{one.name}|{side}|{len(block.texts)}"]
        for side, block in one.blocks.items()
    }


def judge(one: RetrievalSet, found: dict[str, Array], reference: dict[str, Array]) -> dict[str, Any]:
    """Compare one kind's vectors of a set with those of the float32 reference."""
    run = rank(found["queries"], found["documents"], one.query_ids, one.document_ids)
    expected = rank(reference["queries"], reference["documents"], one.query_ids, one.document_ids)
    overlaps = [len(nearest(run[query]) & nearest(expected[query])) / TOP for query in one.query_ids]
    ours, theirs = (np.concatenate([sides["queries"], sides["documents"]]) for sides in (found, reference))
    cosines = (ours * theirs).sum(axis=1)
    return {
        "overlap@10": float(np.mean(overlaps)),
        "ndcg@10": 100 * float(retrieval_metrics(one.qrels, run)["ndcg@10"].mean()),
        "cosine_mean": float(cosines.mean()),
        "cosine_min": float(cosines.min()),
        "max_abs": float(np.abs(ours - theirs).max()),
        "queries": len(one.query_ids),
        "documents": len(one.document_ids),
    }


def nearest(ranking: dict[str, float]) -> set[str]:
    return set(sorted(ranking, key=lambda document: -ranking[document])[:TOP])


def main(argv: list[str] | None = None) -> None:
    parser = report.parser(__doc__, "quality")
    parser.add_argument("--sets", nargs="+", default=["retrieval/covid_faq", "retrieval/xquad_en"])
    parser.add_argument("--limit", type=int, default=250, help="queries per set, and five times as many documents")
    parser.add_argument("--cache", type=Path, help="npz file for the vectors")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    results = report.Report(arguments, measure=False)
    sets = load_sets(arguments.data / "eval", arguments.sets, limit=arguments.limit)
    retrieval = [one for one in sets if isinstance(one, RetrievalSet)]
    cache = Cache(arguments.cache)
    embed_all(retrieval, arguments, cache)
    for one in retrieval:
        reference = vectors(one, REFERENCE, arguments, cache)
        for kind in KINDS:
            found = vectors(one, kind, arguments, cache)
            results.part(f"{one.name}, {kind}", partial(judge, one, found, reference))


if __name__ == "__main__":
    main()
