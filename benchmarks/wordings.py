"""Does a model follow an instruction, or the wording it was trained with? One contrast under several wordings.

    python benchmarks/wordings.py smollm2-135m --data ../shared/data

`followed` and `choices` of contrast/dev_aws (development rows; docs/evaluation.md), K = 5, for each pair of wordings
of its two instructions: of training, nearly so, in short, four more (which a model can be trained with:
training_h100/wordings.json), and one that nothing was trained with.
"""

from __future__ import annotations

import argparse
import json
import sys
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


def wordings(data: Path) -> dict[str, tuple[str, ...]]:
    tasks = json.loads((data / "tasks.json").read_text(encoding="utf-8"))
    more = json.loads((Path(__file__).parent / "training_h100/wordings.json").read_text(encoding="utf-8"))
    pairs = {"training": tuple(tasks[task]["instruction"] for task in TASKS), "near": NEAR, "short": SHORT}
    pairs |= {f"more {i}": pair for i, pair in enumerate(zip(*(more[task] for task in TASKS), strict=True), 1)}
    return pairs | {"unseen": tuple(UNSEEN[task] for task in TASKS)}


def measure(model: str, data: Path) -> dict[str, dict[str, float]]:
    embedder, found = Embedder.from_pretrained(model, device="cpu"), {}
    for name, pair in wordings(data).items():
        instructions = {f"dev/{task}": wording for task, wording in zip(TASKS, pair, strict=True)}
        report = evaluate(embedder, data / "eval", steps=(5,), sets=["contrast/dev_aws"], instructions=instructions)
        scores = report["contrast/dev_aws"].scores
        found[name] = {metric: round(value[5].value, 1) for metric, value in scores.items()}
        print(model, name, pair, found[name], flush=True)
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
