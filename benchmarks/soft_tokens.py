"""What a model's soft tokens say: which vocabulary tokens weigh most, and how far each step moves the embedding.

    python benchmarks/soft_tokens.py smollm2-135m --data ../shared/data > OUT.json

Eight development queries of each source, under the instruction of their task, K = 5, float32. By step: the mean weight
of each token, of a soft token's heaviest token and of the words of the query, and 1 - cos(z_k, z_{k-1}).
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from gircse_rag import Embedder
from gircse_rag.embedder import DEFAULT_TOLERANCE

QUERIES, STEPS, TOKENS = 8, 5, 50


def rows(data: Path) -> list[tuple[str, str]]:
    """(query, instruction)"""
    tasks = json.loads((data / "tasks.json").read_text(encoding="utf-8"))
    found = []
    for path in sorted((data / "dev").glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            found += [json.loads(line) for line in islice(file, QUERIES)]
    return [(row["query"], tasks[row["task"]]["instruction"]) for row in found]


def measured(embedder: Embedder, asked: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """By step, over the queries."""
    weights: list[Counter[str]] = [Counter() for _ in range(STEPS)]
    heaviest, of_query, moved = (np.zeros((len(asked), STEPS)) for _ in range(3))
    for n, (query, instruction) in enumerate(asked):
        result = embedder.embed([query], instruction=instruction, steps=STEPS, trajectory=True, soft_tokens=TOKENS)
        assert result.soft_tokens is not None and result.trajectory is not None
        words, path = {word.lower() for word in query.split()}, result.trajectory[0]
        for k, tokens in enumerate(result.soft_tokens[0]):
            for token, weight in tokens:
                weights[k][token] += weight / len(asked)
            heaviest[n, k] = tokens[0][1]
            of_query[n, k] = sum(weight for token, weight in tokens if token.strip().lower() in words - {"the", "a"})
            moved[n, k] = 1 - path[k] @ path[k - 1] if k else np.nan
    return [
        {
            "step": k + 1,
            "tokens": {token: round(weight, 3) for token, weight in weights[k].most_common(8)},
            "heaviest": round(float(heaviest[:, k].mean()), 3),
            "words of the query": round(float(of_query[:, k].mean()), 3),
            **(
                {
                    "moved, median": round(float(np.median(moved[:, k])), 6),
                    "moved, most": round(float(moved[:, k].max()), 4),
                    "share that steps='auto' would stop at": round(float((moved[:, k] <= DEFAULT_TOLERANCE).mean()), 2),
                }
                if k
                else {}
            ),
        }
        for k in range(STEPS)
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", type=Path, required=True)
    given = parser.parse_args()
    asked = rows(given.data)
    embedder = Embedder.from_pretrained(given.model, device="cpu", dtype="float32")
    steps = measured(embedder, asked)
    print(json.dumps({"model": given.model, "queries": len(asked), "steps": steps}, indent=1, ensure_ascii=False))
