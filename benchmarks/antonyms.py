"""Of the words of `make demo`, does an opposite come first when an opposite is asked for? docs/instructions.md has it.

python benchmarks/antonyms.py smollm2-135m > docs/figures/training/antonyms.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from examples.demo import STEERED, STEERING, WORDS
from gircse_rag import INSTRUCTIONS, Embedder

# Ten of size and temperature, then ten of courage, trade and mood; after each, those of WORDS that are its opposites.
OPPOSITES = {
    STEERED: "enlarge swell",
    "grow: become larger": "shrink decrease",
    "expand: become larger in size": "shrink decrease",
    "contract: become smaller in size": "enlarge swell",
    "inflate: cause to expand by filling with air": "shrink decrease",
    "deflate: collapse by releasing air": "enlarge swell",
    "boiling: extremely hot": "cold",
    "icy: covered with or extremely cold": "hot warm",
    "chilly: uncomfortably cool": "hot warm",
    "scorching: hot and dry enough to burn": "cold",
    "fearless: without fear": "coward",
    "timid: lacking courage": "brave",
    "heroic: very courageous": "coward",
    "purchase: acquire by paying": "sell",
    "vend: offer for money": "buy",
    "market: engage in selling": "buy",
    "cheerful: in good spirits": "sad",
    "gloomy: dark and depressed": "happy",
    "joyful: full of joy": "sad",
    "sorrowful: experiencing sadness": "happy",
}


def main(model: str) -> None:
    embedder, words = Embedder.from_pretrained(model), WORDS.split()
    queries = embedder.embed_queries(list(OPPOSITES), instruction=INSTRUCTIONS[STEERING[1]])
    nearest = [words[int(scores.argmax())] for scores in queries @ embedder.embed_documents(words).T]
    rows = [
        {"query": query, "first": first, "opposite": first in opposites.split()}
        for (query, opposites), first in zip(OPPOSITES.items(), nearest, strict=True)
    ]
    halves = [sum(row["opposite"] for row in part) for part in (rows[:10], rows[10:])]
    print(json.dumps({"model": model, "opposite comes first": halves, "words": rows}, indent=1))


if __name__ == "__main__":
    main(sys.argv[1])
