"""Fit a checkpoint's rotation, which lets `dimensions=` keep the components that matter most (checkpoint/rotation.py).

    python scripts/fit_rotation.py MODEL rows.jsonl --tasks tasks.json --output FOLDER

Embeds queries and positives of training rows, `--rows` of them at random, and writes FOLDER/rotation/model.safetensors.
FOLDER is the checkpoint's own. The rotation of smollm2-135m was made so:

    python scripts/fit_rotation.py smollm2-135m ../shared/data/train ../shared/data/train2 \
        --tasks ../shared/data/tasks.json ../shared/data/tasks2.json --output gircse_rag/checkpoint/weights/smollm2-135m
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np

from gircse_rag import Embedder
from gircse_rag.checkpoint.rotation import Rotation
from gircse_rag.progress import progress
from gircse_rag.training.data import Row, Task, read_rows, read_tasks


def embed(embedder: Embedder, rows: list[Row], tasks: dict[str, Task], seed: int) -> np.ndarray:
    """Embed each row's query, under one of its task's instructions, and its positive: (2 n, d)."""
    rng = random.Random(seed)
    groups: dict[str | None, list[str]] = {}
    for row in rows:
        task = tasks[row.task]
        instruction = rng.choice(task.instructions)
        groups.setdefault(instruction, []).append(row.query)
        groups.setdefault(instruction if task.symmetric else None, []).append(row.positive)
    vectors = []
    with progress("embedding texts") as update:
        for instruction, texts in groups.items():
            vectors.append(embedder.embed(texts, "document" if instruction is None else "query", instruction).vectors)
            update(sum(map(len, vectors)), 2 * len(rows))
    return np.concatenate(vectors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data", nargs="+", help="JSONL files of training rows, or folders of them")
    parser.add_argument("--tasks", nargs="+", required=True)
    parser.add_argument("--rows", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    tasks = {name: task for path in arguments.tasks for name, task in read_tasks(path).items()}
    rows = read_rows(arguments.data, tasks)
    chosen = random.Random(arguments.seed).sample(rows, min(arguments.rows, len(rows)))
    with Embedder.from_pretrained(arguments.model) as embedder:
        Rotation.fit(embed(embedder, chosen, tasks, arguments.seed)).write(arguments.output)


if __name__ == "__main__":
    main()
