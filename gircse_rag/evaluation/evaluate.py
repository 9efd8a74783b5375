"""Score a model on a folder of evaluation sets: `evaluate`."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gircse_rag.deprecation import renamed_arguments
from gircse_rag.errors import InputError, require
from gircse_rag.evaluation.catalogue import load_sets
from gircse_rag.evaluation.metrics import Estimate
from gircse_rag.evaluation.results import Report, Score, SetResult, score_of
from gircse_rag.evaluation.scoring import Mode, score
from gircse_rag.evaluation.sets import EvalSet, RetrievalSet
from gircse_rag.evaluation.vectors import EmbedFn, FromEmbedder, Vectors, check_steps

if TYPE_CHECKING:
    from gircse_rag.embedder import Embedder


@renamed_arguments(folder="data")
def evaluate(
    embed: Embedder | EmbedFn,
    data: str | Path | Sequence[EvalSet],
    steps: Iterable[int] = (1, 5),
    *,
    sets: Sequence[str] | None = None,
    limit: int | None = None,
    instructions: Mapping[str, str] | None = None,
    model: str | None = None,
    on_set: Callable[[SetResult], None] | None = None,
    mode: Mode = "dense",
) -> Report:
    """Score a model on evaluation sets at every K of `steps`.

    Each distinct (text, role, instruction) is embedded once for all K, because refinement computes z_1..z_K anyway.

    Args:
        embed: an `Embedder`, or any `embed(texts, role, instruction, steps) -> (n, len(steps), d)`; its vectors need
            not be normalised.
        data: a folder in the format of `gircse_rag.evaluation.catalogue`, or sets returned by `load_sets`.
        steps: values of K. A model without refinement (a pooling baseline) is scored with `steps=(0,)`.
        sets, limit, instructions: see `load_sets`. With loaded sets, `limit` only appears in the report and the other
            two are an error.
        model: name for the report (default: the Embedder's base model).
        on_set: called with each set's result as soon as it is available.
        mode: how retrieval sets are ranked: by vectors ("dense"), by BM25 ("lexical") or by both ("hybrid"), as in
            `gircse_rag.qdrant.search`. Other sets are not affected.

    Raises:
        MissingExtraError: the `eval` extra is not installed; checked before embedding.
        InputError: a bad folder, set, file or argument, or vectors that are not finite.
    """
    for module in ("sklearn", "scipy", "pytrec_eval"):
        require(module, "eval")
    started = time.perf_counter()
    sorted_steps = check_steps(steps)
    if isinstance(data, str | Path):
        chosen = load_sets(data, sets, limit=limit, instructions=instructions)
    elif sets is not None or instructions is not None:
        raise InputError("sets and instructions apply only when reading a folder; pass them to load_sets")
    else:
        chosen = list(data)
    function: EmbedFn = embed if callable(embed) else FromEmbedder(embed)
    spec = None if callable(embed) else embed.spec
    vectors = Vectors(chosen, function, sorted_steps)
    results: list[SetResult] = []
    mains: list[list[Estimate]] = []
    for index, evaluation_set in enumerate(chosen):
        result, estimates = score_set(evaluation_set, vectors, sorted_steps, mode)
        vectors.done_with(index)
        results.append(result)
        if result.in_mean:
            mains.append(estimates)
        if on_set is not None:
            on_set(result)
    mean, gain = summarise(mains, sorted_steps)
    return Report(
        model=model or (spec.base_model if spec is not None else str(getattr(embed, "__name__", "unnamed"))),
        steps=sorted_steps,
        sets=tuple(results),
        mean=mean,
        gain=gain,
        fingerprint=spec.fingerprint if spec is not None else None,
        limit=limit,
        texts=vectors.embedded,
        truncated=getattr(function, "truncated", None),
        seconds=round(time.perf_counter() - started, 1),
        versions=_versions(),
        mode=mode,
    )


def score_set(
    evaluation_set: EvalSet, vectors: Vectors, steps: tuple[int, ...], mode: Mode = "dense"
) -> tuple[SetResult, list[Estimate]]:
    """Score one set at every K. Return its result, and the estimates of its main metric in the order of `steps`."""
    started = time.perf_counter()
    blocks = evaluation_set.blocks
    unused = mode == "lexical" and isinstance(evaluation_set, RetrievalSet)
    arrays = {} if unused else {name: vectors.of(block) for name, block in blocks.items()}
    by_step = [score(evaluation_set, {name: a[:, i] for name, a in arrays.items()}, mode) for i in range(len(steps))]
    result = SetResult(
        name=evaluation_set.name,
        task=evaluation_set.task,
        main=evaluation_set.main,
        scores={
            metric: {k: score_of(e[metric].value, e[metric].interval) for k, e in zip(steps, by_step, strict=True)}
            for metric in by_step[0]
        },
        inputs={
            name: {"texts": len(block.texts), "role": block.role, "instruction": block.instruction}
            for name, block in blocks.items()
        },
        seconds=round(time.perf_counter() - started, 2),
        empty_documents=evaluation_set.empty_documents if isinstance(evaluation_set, RetrievalSet) else 0,
    )
    return result, [estimates[evaluation_set.main] for estimates in by_step]


def summarise(mains: Sequence[Sequence[Estimate]], steps: tuple[int, ...]) -> tuple[dict[int, Score], dict[int, Score]]:
    """Return the mean over sets at each K, and its gain over the first K.

    Sets are resampled independently. Within a set, all K share the resampled items, so the gain is a paired difference.
    """
    if not mains:
        return {}, {}
    values = np.mean([[e.value for e in row] for row in mains], axis=0)
    replicates = np.mean([[e.replicates for e in row] for row in mains], axis=0)
    mean, gain = {}, {}
    for i, k in enumerate(steps):
        mean[k] = score_of(values[i], np.percentile(replicates[i], (2.5, 97.5)))
        gain[k] = score_of(values[i] - values[0], np.percentile(replicates[i] - replicates[0], (2.5, 97.5)))
    return mean, gain


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in ("gircse-rag", "torch", "transformers", "scikit-learn", "scipy", "numpy", "pytrec-eval-terrier"):
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions
