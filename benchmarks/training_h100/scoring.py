"""Scores of a module in training, and of adapters that another process trains."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from benchmarks.training_h100.common import ADAPTERS, SPEC, say
from benchmarks.training_h100.module import build, load_adapter
from gircse_rag.embedder import Embedder
from gircse_rag.evaluation import Report, evaluate
from gircse_rag.evaluation.vectors import EmbedFn
from gircse_rag.prompts import prefix
from gircse_rag.refinement import pool
from gircse_rag.training.config import TrainConfig
from gircse_rag.training.unrolled import UnrolledRefinement

CHUNK_TOKENS, CHUNK_TEXTS = 100_000, 4096  # at once, longest texts first
# Wordings that no training saw, of the tasks that exclude each other.
UNSEEN = {
    "medical_same_topic": "Given a passage, find others that deal with the same health problem",
    "medical_same_question_type": "Identify the kind of information that a medical text gives",
    "aws_same_service": "Identify the service that an API operation is part of",
    "aws_same_action": "Identify the kind of action that an API operation performs",
    "word_synonym": "Given a word, find one that means nearly the same",
    "word_antonym": "Given a word, find one that means the reverse",
    "word_hypernym": "Given a word, find what it is a type of",
    "word_hyponym": "Given a word, find a type of it",
    "word_example": "Given a word, find a text in which it occurs in this sense",
    "context_definition": "Given a word in a sentence, explain the word",
    "context_synonym": "Given a word in a sentence, find an equivalent word",
    "context_hypernym": "Given a word in a sentence, find a word for the wider class",
}
Table = dict[str, dict[str, float]]  # by set and K, the leading score


def embedder(module: UnrolledRefinement, tokenizer: PreTrainedTokenizerBase, pooling: str) -> EmbedFn:
    """The module as what `gircse_rag.evaluation` asks for: (n, len(steps), d)."""

    @torch.no_grad()
    def embed(texts: list[str], role: str, instruction: str | None, steps: Sequence[int]) -> np.ndarray:
        head = prefix(SPEC.document_template if role == "document" else SPEC.query_template, instruction)
        encoded = tokenizer([head + text for text in texts], add_special_tokens=False)["input_ids"]
        ids = [i[: SPEC.max_length] for i in encoded]
        order, out = np.argsort([-len(i) for i in ids], kind="stable"), [None] * len(ids)
        start = 0
        while start < len(order):
            count = min(max(1, CHUNK_TOKENS // len(ids[order[start]])), CHUNK_TEXTS)
            part = order[start : start + count]
            z = pool(module([ids[i] for i in part], max(1, *steps, 1), pooling))
            z = z[:, [min(k, z.shape[1]) - 1 for k in steps]] if pooling == "refine" else z.expand(-1, len(steps), -1)
            for i, row in zip(part, z.float().cpu().numpy(), strict=True):
                out[i] = row
            start += len(part)
        return np.stack(out)

    return embed


def scored(
    module: UnrolledRefinement,
    tokenizer: PreTrainedTokenizerBase,
    pooling: str,
    data: Path,
    sets: Sequence[str],
    steps: Sequence[int],
    name: str,
    limit: int | None = None,
) -> tuple[Table, Report]:
    """At every K of `steps`; without refinement at 0, which is all there is."""
    begun = time.perf_counter()
    report = evaluate(
        embedder(module, tokenizer, pooling),
        data / "eval",
        steps=steps if pooling == "refine" else [0],
        sets=sets,
        model=name,
        limit=limit,
    )
    say(name, "evaluated in", round(time.perf_counter() - begun, 1))
    return leading(report), report


def leading(report: Report) -> Table:
    return {r.name: {str(k): round(float(s.value), 4) for k, s in r.scores[r.main].items()} for r in report.sets}


def chosen_by(embed: Embedder | EmbedFn, data: Path, steps: Sequence[int]) -> Table:
    """STS-B dev and the development contrasts, in the wordings of training and in `UNSEEN`."""
    folder = data / "eval"
    trained = leading(evaluate(embed, folder, steps=steps, sets=["sts/stsb_dev", "contrast/dev_*"]))
    instructions = {f"dev/{task}": wording for task, wording in UNSEEN.items()}
    unseen = leading(evaluate(embed, folder, steps=steps, sets=["contrast/dev_*"], instructions=instructions))
    return trained | {f"unseen/{key}": value for key, value in unseen.items()}


def development(result: dict[str, Any]) -> float:
    """What an adapter is chosen by, at the last K scored: STS-B dev, plus a tenth of the share that follows.

    Fixed before anything was scored by it. STS-B dev is the only development set that is not of a training task.
    """
    last = {name: list(values.values())[-1] for name, values in result["scores"].items()}
    followed = [value for name, value in last.items() if "contrast/" in name]
    return round(last["sts/stsb_dev"] + 0.1 * float(np.mean(followed)), 3)


def summary(table: Table) -> dict[str, dict[str, float]]:
    """Means by task and K."""

    def mean(start: str) -> dict[str, float]:
        rows = [v for k, v in table.items() if k.startswith(start)]
        return {k: round(float(np.mean([r[k] for r in rows])), 2) for k in rows[0]} if rows else {}

    return {kind: mean(kind) for kind in ("dev/", "sts/", "contrast/", "retrieval/", "classification/", "clustering/")}


def score(base: Path, data: Path, out: Path, plan: list[dict[str, Any]], groups: int) -> None:
    """Full reports of adapters as they appear (from `runs` beside it); a {"name", "pooling", "sets", "steps"} each."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    waiting = list(plan)
    while waiting:
        for entry in list(waiting):
            folder = ADAPTERS / entry["name"]
            if not (folder / "done").exists():
                continue
            waiting.remove(entry)
            given = json.loads((folder / "adapter_config.json").read_text())
            config = {"output": "/tmp/score", "data": "t", "tasks": "t", "rows": 1}
            module = build(
                base, TrainConfig.of({**config, "rank": given["r"], "alpha": given["lora_alpha"]}), groups=groups
            )
            load_adapter(module, folder)
            name = f"{entry['name']}_{entry['sets'][0].split('/')[0]}"
            table, report = scored(
                module, tokenizer, entry.get("pooling", "refine"), data, entry["sets"], entry["steps"], name
            )
            report.save(out / f"{name}.json")
            say(name, {k: list(v.values()) for k, v in table.items()})
        time.sleep(0.5)
