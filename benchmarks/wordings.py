"""Does a model follow an instruction, or the wording it was trained with? Three contrasts under several wordings.

    python benchmarks/wordings.py smollm2-135m --data ../shared/data

K = 5 (docs/evaluation.md has the measures). contrast/dev_aws (development rows) under each pair of wordings of its two
instructions: of training, nearly so, in short, four more (which a model can be trained with:
training_h100/wordings.json), and one that nothing was trained with. contrast/clinc150 and contrast/trec under the
instructions of `gircse eval`, which follow.py trains with, and under two pairs that it does not.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.training_h100.scoring import UNSEEN
from gircse_rag import Embedder
from gircse_rag.evaluation import evaluate

TASKS = ("aws_same_service", "aws_same_action")
NEAR = (
    "Given a description of an API operation, find operations of the same service",
    "Given a description of an API operation, find operations of other services that do the same kind of action",
)
SHORT = ("operations of the same service", "operations that perform the same kind of action")
# A set's two instructions, exact and broad, and wordings of them beside those of `gircse eval`.
NESTED: dict[str, tuple[tuple[str, str], dict[str, tuple[str, str]]]] = {
    "contrast/clinc150": (
        ("classification/clinc150_intent", "classification/clinc150_domain"),
        {
            "near": (
                "Identify the exact intent of a request to a voice assistant",
                "Identify the general domain of a request to a voice assistant",
            ),
            "unseen": ("What does the user want the assistant to do?", "Which area of life is this about?"),
        },
    ),
    "contrast/trec": (
        ("classification/trec_fine", "classification/trec_coarse"),
        {
            "near": (
                "Identify the exact type of answer that a question asks for",
                "Identify the broad type of answer that a question asks for",
            ),
            "unseen": (
                "Say precisely what sort of thing is wanted here",
                "Say roughly what sort of thing is wanted here",
            ),
        },
    ),
}


def wordings(data: Path) -> dict[str, tuple[str, ...]]:
    tasks = json.loads((data / "tasks.json").read_text(encoding="utf-8"))
    more = json.loads((Path(__file__).parent / "training_h100/wordings.json").read_text(encoding="utf-8"))
    pairs = {"training": tuple(tasks[task]["instruction"] for task in TASKS), "near": NEAR, "short": SHORT}
    pairs |= {f"more {i}": pair for i, pair in enumerate(zip(*(more[task] for task in TASKS), strict=True), 1)}
    return pairs | {"unseen": tuple(UNSEEN[task] for task in TASKS)}


def asked(data: Path) -> Iterator[tuple[str, str, dict[str, str]]]:
    """(set, name of a pair of wordings, {whose instruction: wording})"""
    for name, pair in wordings(data).items():
        yield "contrast/dev_aws", name, {f"dev/{task}": wording for task, wording in zip(TASKS, pair, strict=True)}
    for name, (kinds, pairs) in NESTED.items():
        yield name, "training", {}
        for which, pair in pairs.items():
            yield name, which, dict(zip(kinds, pair, strict=True))


def measure(model: str, data: Path) -> dict[str, dict[str, dict[str, float]]]:
    embedder = Embedder.from_pretrained(model, device="cpu")
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, which, instructions in asked(data):
        report = evaluate(embedder, data / "eval", steps=(5,), sets=[name], instructions=instructions)
        scores = {metric: round(float(value[5].value), 1) for metric, value in report[name].scores.items()}
        found.setdefault(name, {})[which] = scores
        print(model, name, which, instructions, scores, flush=True)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, help="JSON")
    given = parser.parse_args()
    result = measure(given.model, given.data)
    if given.output:
        given.output.write_text(json.dumps(result, indent=1), encoding="utf-8")
