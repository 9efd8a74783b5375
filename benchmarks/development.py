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
from benchmarks.training_h100.scoring import chosen_by, development
from gircse_rag import Embedder

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    done = json.loads(given.output.read_text(encoding="utf-8")) if given.output.exists() else {}
    for model in given.models:
        if model not in done:
            scores = chosen_by(Embedder.from_pretrained(model, device="cpu"), given.data, (1, 5))
            done[model] = {"scores": scores, "rule": development({"scores": scores})}
            print(model, done[model], flush=True)
            given.output.write_text(json.dumps(done, indent=1), encoding="utf-8")
