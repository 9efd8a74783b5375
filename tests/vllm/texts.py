"""Real texts: docstrings of the standard library, which every machine has."""

from __future__ import annotations

import importlib
import inspect
import random

MODULES = (
    *(
        "argparse",
        "ast",
        "asyncio",
        "collections",
        "csv",
        "datetime",
        "decimal",
        "difflib",
        "email.message",
        "fractions",
    ),
    *("functools", "heapq", "html", "http.client", "inspect", "io", "itertools", "json", "logging", "os", "pathlib"),
    *("random", "re", "shutil", "socket", "sqlite3", "statistics", "string", "subprocess", "tarfile", "textwrap"),
    *("threading", "typing", "unittest", "urllib.parse", "zipfile"),
)


def real_texts(number: int, *, seed: int = 0) -> list[str]:
    """Return `number` different texts of 20 to 1500 characters; the seed fixes their order."""
    found = set()
    for name in MODULES:
        for _, thing in inspect.getmembers(importlib.import_module(name)):
            for member in (thing, *(value for _, value in inspect.getmembers(thing, inspect.isroutine))):
                text = inspect.getdoc(member)
                if text and 20 <= len(text) <= 1500:
                    found.add(text)
    chosen = sorted(found)
    random.Random(seed).shuffle(chosen)
    return chosen[:number]
