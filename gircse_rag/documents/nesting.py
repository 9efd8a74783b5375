"""How deep source code is nested, by its text alone."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

_OPENERS = {")": "(", "]": "[", "}": "{"}
_TOKEN = re.compile(r"[()\[\]{}]|\b(?:else\s+)?if\b")


@dataclass(slots=True)
class _Level:
    """What is open: its bracket, how deep it is inside so far, and the `else if`s since its last `if`."""

    bracket: str
    depth: int = 0
    chain: int = 0


def nesting(text: str) -> int:
    """How many pairs of brackets stand around one place, at most; to a parser an `else if` is inside the one before.

    Linear in the length. Strings and comments count as code; a bracket without its other end counts nothing.
    """
    levels, opened = [_Level("")], Counter[str]()
    for token in _TOKEN.findall(text):
        if opener := _OPENERS.get(token):
            done = not opened[opener]
            while not done:
                inner = levels.pop()
                opened[inner.bracket] -= 1
                done = inner.bracket == opener  # else it has no other end, and only what is in it counts
                levels[-1].depth = max(levels[-1].depth, levels[-1].chain + inner.depth + done)
        elif token in "([{":
            levels.append(_Level(token))
            opened[token] += 1
        elif token == "if":
            levels[-1].chain = 0
        else:
            levels[-1].chain += 1
            levels[-1].depth = max(levels[-1].depth, levels[-1].chain)
    return max(level.depth for level in levels)
