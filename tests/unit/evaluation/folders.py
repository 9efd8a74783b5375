"""Tiny folders in the evaluation format, and a deterministic model to score on them."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

CORPUS = {
    "d1": ("Wings", "lift of a wing at low speed"),
    "d2": ("", "heat transfer on a blunt nose"),
    "d3": ("", "buckling of thin shells"),
    "d4": ("", ""),
}
QUERIES = {"q1": "wing lift", "q2": "thin shell buckling", "q3": "judged by nobody"}
QRELS = [("q1", "d1", "2"), ("q1", "d2", "1"), ("q2", "d3", "1"), ("q2", "d1", "0")]
NAMED = {"classification/bank_fine": "Which request exactly?", "classification/bank_coarse": "coarse: which subject?"}
FINE_LABELS = ("card_lost", "card_fee", "flight_late", "flight_price")


def write_lines(path: Path, lines: Iterable[str]) -> Path:
    """Write a UTF-8 file of lines, gzipped if its name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    return write_lines(path, (json.dumps(row) for row in rows))


def labelled(count: int, offset: int = 0) -> list[dict[str, str]]:
    """Make `count` rows that cycle through the four fine labels; the coarse label is the first word."""
    rows = []
    for i in range(count):
        fine = FINE_LABELS[i % 4]
        coarse = fine.partition("_")[0]
        rows.append({"text": f"{coarse} {fine} number {i + offset}", "fine": fine, "coarse": coarse})
    return rows


def retrieval(folder: Path) -> Path:
    rows = [{"_id": key, "title": title, "text": text} for key, (title, text) in CORPUS.items()]
    write_rows(folder / "corpus.jsonl.gz", rows)
    write_rows(folder / "queries.jsonl.gz", ({"_id": key, "text": text} for key, text in QUERIES.items()))
    write_lines(folder / "qrels.tsv", ["query-id\tcorpus-id\tscore", *("\t".join(row) for row in QRELS)])
    return folder


def whole(base: Path) -> Path:
    """Write every kind of set to `base/eval`, with `base/dev` and `base/tasks.json`; returns `base/eval`."""
    root = base / "eval"
    retrieval(root / "retrieval" / "planes")
    pairs = [
        "score\tsentence1\tsentence2",
        "5.0\ta cat sat\ta cat sat",
        "2.5\ta cat sat\ta dog sat",
        "0\tblue\tred car",
    ]
    write_lines(root / "sts" / "graded.tsv.gz", pairs)
    write_lines(
        root / "sts" / "same.tsv", [pairs[0], "1\thow are you\thow are you now", "0\tred\tblue", "1\tbig\tbig one"]
    )
    for name, field in (("bank_fine", "fine"), ("bank_coarse", "coarse")):
        for part, rows in (("train", labelled(40, 100)), ("test", labelled(24))):
            path = root / "classification" / name / f"{part}.jsonl.gz"
            write_rows(path, ({"text": r["text"], "label": r[field]} for r in rows))
    write_rows(root / "clustering" / "two.jsonl.gz", labelled(24))
    write_rows(root / "clustering" / "one.jsonl", ({"text": r["text"], "label": r["coarse"]} for r in labelled(12)))
    tasks = {
        "aws_same_service": {"instruction": "same service", "symmetric": True, "source": "aws", "dev_rows": 3},
        "aws_same_action": {"instruction": "same action", "symmetric": True, "source": "aws", "dev_rows": 2},
        "manual_section": {"instruction": "find the section", "symmetric": False, "source": "docs", "dev_rows": 1},
        "unused": {"instruction": "nothing", "symmetric": False, "source": "docs", "dev_rows": 0},
    }
    (base / "tasks.json").write_text(json.dumps(tasks))
    aws = [
        ("aws_same_service", "list keys", "delete key", "list users"),
        ("aws_same_action", "list keys", "list users", "delete key"),
        ("aws_same_service", "add disk", "remove disk", None),
        ("aws_same_action", "add disk", "add tag", None),
        ("aws_same_service", "stop host", "start host", None),
    ]
    keys = ("task", "query", "positive", "negative")
    write_rows(base / "dev" / "aws.jsonl.gz", (dict(zip(keys, row, strict=True)) for row in aws))
    row = ("manual_section", "printing", "how to print", None)
    write_rows(base / "dev" / "docs.jsonl.gz", [dict(zip(keys, row, strict=True))])
    return root


class WordVectors:
    """A bag of hashed words that ignores role and instruction; records its calls."""

    def __init__(self, dimension: int = 64) -> None:
        self.dimension = dimension
        self.calls: list[tuple[tuple[str, ...], str, str | None, tuple[int, ...]]] = []

    def __call__(self, texts: list[str], role: str, instruction: str | None, steps: tuple[int, ...]) -> np.ndarray:
        self.calls.append((tuple(texts), role, instruction, steps))
        out = np.full((len(texts), len(steps), self.dimension), 0.01, dtype=np.float32)
        for row, text in enumerate(texts):
            for word in text.lower().split():
                out[row, :, zlib.crc32(word.encode()) % self.dimension] += 1.0
        return out
