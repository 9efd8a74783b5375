"""What adapters are chosen by: STS-B dev, and the development contrasts in the wordings of training and in unseen ones.

    python benchmarks/development.py MODEL MODEL ... --data ../shared/data --output OUT.json

K = 1 and 5. `rule` is `development` of training_h100/scoring.py. Models that OUT.json has already are left alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.training_h100.scoring import UNSEEN, development
from gircse_rag import Embedder
from gircse_rag.evaluation import evaluate

CONTRASTS = "contrast/dev_*"


def measure(model: str, data: Path) -> dict[str, object]:
    embedder = Embedder.from_pretrained(model, device="cpu")
    unseen = {f"dev/{task}": wording for task, wording in UNSEEN.items()}
    scores = {}
    for start, sets, instructions in (
        ("", [CONTRASTS], None),
        ("unseen/", [CONTRASTS], unseen),
        ("", ["sts/stsb_dev"], None),
    ):
        report = evaluate(embedder, data / "eval", steps=(1, 5), sets=sets, instructions=instructions)
        for found in report.sets:
            scores[start + found.name] = {str(k): round(s.value, 2) for k, s in found.scores[found.main].items()}
            print(model, start + found.name, scores[start + found.name], flush=True)
    return {"scores": scores, "rule": development({"scores": scores})}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    done = json.loads(given.output.read_text(encoding="utf-8")) if given.output.exists() else {}
    for model in given.models:
        if model not in done:
            done[model] = measure(model, given.data)
            print(model, done[model]["rule"], flush=True)
            given.output.write_text(json.dumps(done, indent=1), encoding="utf-8")
