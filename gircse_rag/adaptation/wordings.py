"""Other wordings of an instruction. A model that trains with one wording follows that one and hardly another."""

from __future__ import annotations

import re

_GIVEN = re.compile(
    r"(?:given|for) (?P<what>.+?), (?P<verb>retrieve|find|return|search for) (?P<rest>.+)", re.IGNORECASE
)
_VERB = re.compile(r"\b(retrieve|find|return|search for|identify)\b", re.IGNORECASE)
_VERBS = ("retrieve", "find", "return", "search for", "look up")


def wordings(instruction: str) -> list[str]:
    """Make up to eight wordings of an instruction, itself first, by exchanging its verb and its order."""
    sentence = instruction.strip().rstrip(".")
    made = [instruction]
    if match := _GIVEN.fullmatch(sentence):
        what, rest = match["what"], match["rest"]
        for verb in _VERBS:
            made.append(f"Given {what}, {verb} {rest}")
        made += [f"For {what}, find {rest}", f"{what[0].upper()}{what[1:]} is given; retrieve {rest}"]
    elif found := _VERB.search(sentence):
        for verb in _VERBS:
            said = sentence[: found.start()] + verb + sentence[found.end() :]
            made.append(said[0].upper() + said[1:])
    else:
        lowered = sentence[0].lower() + sentence[1:]
        made += [f"Find texts for this task: {lowered}", f"Task: {lowered}", f"Retrieve what fits: {lowered}"]
    return list(dict.fromkeys(made))[:8]
