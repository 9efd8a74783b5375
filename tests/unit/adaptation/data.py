"""Small documents and questions: 64 notes in four files of words that a question shares with its note."""

from __future__ import annotations

import csv
from pathlib import Path

THINGS = ("pump", "valve", "sensor", "filter", "engine", "gauge", "switch", "motor")
ACTIONS = ("clean", "replace", "measure", "close", "paint", "store", "order", "test")


def notes() -> dict[str, str]:
    """64 short texts by id."""
    return {
        f"{action}-{thing}.txt": f"To {action} the {thing}, open box {i}{j} and use tool {j}{i}."
        for i, action in enumerate(ACTIONS)
        for j, thing in enumerate(THINGS)
    }


def write_notes(folder: Path) -> Path:
    """Write `notes` as files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in notes().items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def write_handbook(folder: Path) -> Path:
    """Write `notes` as Markdown with a heading and three sentences each."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in notes().items():
        title = name.removesuffix(".txt").replace("-", " the ")
        body = f"{text} The {title} rule holds on all days of the week. Ask the {title} office if a tool is lost."
        (folder / name).with_suffix(".md").write_text(f"# How to {title}\n\n{body}\n", encoding="utf-8")
    return folder


def rows() -> list[dict[str, str]]:
    """One question per note."""
    return [
        {"question": f"how do I {name.removesuffix('.txt').replace('-', ' the ')}?", "document": name}
        for name in notes()
    ]


def write_pairs(path: Path) -> Path:
    """Write `rows` as CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["question", "document"])
        writer.writeheader()
        writer.writerows(rows())
    return path
