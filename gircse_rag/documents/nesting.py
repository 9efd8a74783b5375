"""How deeply source code is nested, estimated from its text without a parser."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

_OPENERS = {")": "(", "]": "[", "}": "{"}
_TOKEN = re.compile(r"[()\[\]{}]|\b(?:else\s+)?if\b")


@dataclass(slots=True)
class _Level:
    """An open bracket, the depth seen inside it so far, and the number of `else if`s since its last `if`."""

    bracket: str
    depth: int = 0
    chain: int = 0


def nesting_depth(text: str) -> int:
    """The largest number of bracket pairs around any one place in `text`.

    Each `else if` adds a level, because parsers nest it in the previous one. Strings and comments count as code,
    unmatched brackets do not count. Linear time.
    """
    levels, opened = [_Level("")], Counter[str]()
    for token in _TOKEN.findall(text):
        if opener := _OPENERS.get(token):
            done = not opened[opener]
            while not done:
                inner = levels.pop()
                opened[inner.bracket] -= 1
                done = inner.bracket == opener  # else `inner` is unmatched: only its contents count
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
