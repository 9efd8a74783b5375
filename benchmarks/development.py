"""What adapters are chosen by: STS-B dev, and the development contrasts in the wordings of training and in unseen ones.

    python benchmarks/development.py MODEL MODEL ... --data ../shared/data --output OUT.json

K = 1 and 5. `rule` is `development` of training_h100/scoring.py. Models that OUT.json has already are left alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.training_h100.scoring import chosen_by, development
from gircse_rag import Embedder
from gircse_rag.files import written_whole


def measured(models: Sequence[str], output: Path, measure: Callable[[str], Any]) -> None:
    """What `measure` finds of each model, into the JSON file `output`, which is whole after each. Models that it has
    already are left alone.
    """
    done = json.loads(output.read_text(encoding="utf-8")) if output.exists() else {}
    for model in models:
        if model not in done:
            done[model] = measure(model)
            print(model, done[model], flush=True)
            with written_whole(output) as scratch:
                scratch.write_text(json.dumps(done, indent=1), encoding="utf-8")


def scored(model: str, data: Path) -> dict[str, Any]:
    scores = chosen_by(Embedder.from_pretrained(model, device="cpu"), data, (1, 5))
    return {"scores": scores, "rule": development({"scores": scores})}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    measured(given.models, given.output, lambda model: scored(model, given.data))
