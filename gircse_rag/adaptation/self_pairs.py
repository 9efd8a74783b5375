"""Make questions and answers from the documents alone.

    faq          a sentence with a question mark        -> the text after it
    definition   "what is X?" for "X is a ..."          -> the section that says so
    heading      the heading of a section               -> the text of the section
    title        the first line, or the metadata title  -> the rest of the document's first chunk
    crop         one sentence of a section              -> the rest of the section

The answer does not hold the question's words, so that training cannot succeed by copying. A question found in two
chunks has no single answer and is left out. So is one whose own chunk the current model does not rank high (`agree`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from gircse_rag.adaptation.corpus import Corpus, Question, normalise
from gircse_rag.documents import Chunk, Document
from gircse_rag.documents.outline import NO_OUTLINE, read_outline

KINDS = ("faq", "definition", "heading", "title", "crop")
"""Kinds of pairs; earlier ones are more like real questions and are preferred."""
MAX_PAIRS = 400
"""Pairs that are made. More would not fit into ten minutes of training."""
AGREED_RANK = 3
"""A pair stays if the current model ranks the chunk that it was taken from at least this high for its question."""
_ANSWER_WORDS = 8
_CROP_WORDS = range(5, 26)
_QUESTION_WORDS = range(3, 31)
_TITLE_WORDS = range(2, 13)

_NO_PROSE = re.compile(r"^(```|~~~).*?(?:^\1|\Z)|^[ \t]*(?:\||#{1,6}\s).*?$", re.DOTALL | re.MULTILINE)
"""Fenced code, rows of tables, and headings."""
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]*[A-Z0-9])|\n\s*\n|\n(?=\s*(?:[-*+#]|\d+[.)])\s)")
_MARKS = re.compile(r"^(?:[#>*+\s-]+|\d+[.)]\s+|(?:q|question|a|answer)\s*[:.]\s*)+", re.IGNORECASE)
_DEFINED = re.compile(
    r"(?:an?\s+|the\s+)?(?P<term>[\w.+/-]+(?:\s+[\w.+/-]+){0,3}?)\s+"
    r"(?:(?:is|are)\s+(?:an?|the|one of)\s|means\s|refers to\s|stands for\s)",
    re.IGNORECASE,
)
_EMPHASISED = re.compile(
    r"^\s*(?:[-*+]\s+)?(?P<marks>\*\*|__|`)(?P<term>[^\n*_`:]{2,40}):?(?P=marks)\s*[:\u2013\u2014-]?\s+\w", re.MULTILINE
)
_VAGUE = frozenset(
    [
        "this",
        "that",
        "these",
        "those",
        "it",
        "he",
        "she",
        "they",
        "there",
        "here",
        "we",
        "you",
        "i",
        "what",
        "which",
        "who",
        "one",
        "such",
        "if",
        "as",
        "by",
        "when",
        "while",
    ]
)
"""No terms, but words that begin a sentence before `is a`."""


@dataclass(frozen=True)
class SelfPair:
    """A question made from a chunk, and its answer.

    Attributes:
        kind: one of `KINDS`.
        question: as it is asked.
        chunk: number of the chunk that it was taken from.
        answer: the text that training takes as the answer.
    """

    kind: str
    question: str
    chunk: int
    answer: str


@dataclass(frozen=True)
class MadePairs:
    """What the report says about one kind: pairs made, pairs that the current model agreed with, and an example."""

    kind: str
    made: int
    agreed: int
    question: str
    answer: str


def make_pairs(corpus: Corpus, seed: int = 0, limit: int = MAX_PAIRS) -> list[SelfPair]:
    """Make up to `limit` pairs in the order of `KINDS`; the seed decides which.

    A chunk gives at most one pair of each kind, and one per heading.
    """
    generator = np.random.default_rng(seed)
    found: dict[str, list[SelfPair]] = {kind: [] for kind in KINDS}
    for document, chunks in enumerate(corpus.cut):
        first = corpus.members(document).start
        found["heading"] += _headed(corpus.sources[document], chunks, first)
        for number, _ in enumerate(chunks):
            for pair in _pairs_of(corpus, document, number, first + number, generator):
                found[pair.kind].append(pair)
    times = Counter(normalise(pair.question) for kind in KINDS for pair in found[kind])
    chosen: list[SelfPair] = []
    for kind in KINDS:
        unique = [pair for pair in found[kind] if times[normalise(pair.question)] == 1]
        order = generator.permutation(len(unique))[: limit - len(chosen)]
        chosen += [unique[int(index)] for index in sorted(order)]
    return chosen


def as_questions(corpus: Corpus, pairs: Sequence[SelfPair]) -> list[Question]:
    """The pairs as questions of the default instruction."""
    return [
        Question(
            pair.question,
            None,
            frozenset({int(corpus.owners[pair.chunk])}),
            frozenset({pair.chunk}),
            by_document=False,
            answer=pair.answer,
        )
        for pair in pairs
    ]


def agree(pairs: Sequence[SelfPair], dense: np.ndarray, pool: np.ndarray) -> list[bool]:
    """Whether the current model ranks each pair's own chunk among the best `AGREED_RANK`.

    Args:
        pairs: n pairs.
        dense: (n, p) similarities of the questions and the pool.
        pool: (p,) numbers of the chunks.
    """
    own = [int(np.flatnonzero(pool == pair.chunk)[0]) for pair in pairs]
    return [bool((row > row[place]).sum() < AGREED_RANK) for row, place in zip(dense, own, strict=True)]


def describe(pairs: Sequence[SelfPair], agreed: Sequence[bool]) -> list[MadePairs]:
    """Counts of each kind that was made, with the first pair that was kept as example."""
    said = []
    for kind in KINDS:
        members = [(pair, kept) for pair, kept in zip(pairs, agreed, strict=True) if pair.kind == kind]
        if members:
            example = next((pair for pair, kept in members if kept), members[0][0])
            kept = sum(kept for _, kept in members)
            said.append(MadePairs(kind, len(members), kept, example.question, " ".join(example.answer.split())[:100]))
    return said


def _pairs_of(
    corpus: Corpus, document: int, number: int, chunk: int, generator: np.random.Generator
) -> Iterator[SelfPair]:
    """The pairs of one chunk, at most one of each kind; those of headings are found by `_headed`."""
    source, cut = corpus.sources[document], corpus.cut[document]
    text = body = cut[number].text
    if source.language is not None:  # code has no sentences
        return
    if number == 0 and not cut[0].headings:
        title, rest = _title(source.metadata.get("title"), text)
        if title and _long_enough(rest):
            body = rest
            yield SelfPair("title", title, chunk, rest)
    sentences = _sentences(body)
    if answered := _faq(_sentences(text)):
        yield SelfPair("faq", answered[0], chunk, answered[1])
    if (term := _term(sentences, body)) and _long_enough(body):
        yield SelfPair("definition", f"what is {term}?", chunk, body)
    usable = [i for i, said in enumerate(sentences) if len(said.split()) in _CROP_WORDS and not said.endswith("?")]
    if usable:
        place = usable[int(generator.integers(len(usable)))]
        rest = " ".join(said for i, said in enumerate(sentences) if i != place)
        if _long_enough(rest):
            yield SelfPair("crop", sentences[place], chunk, rest)


def _headed(source: Document, chunks: Sequence[Chunk], first: int) -> Iterator[SelfPair]:
    """Headings of a document with the text below each, up to the next heading or the end of the chunk."""
    outline = read_outline(source.text) if source.markdown else NO_OUTLINE
    for start, end, path in zip(outline.starts, (*outline.starts[1:], None), outline.paths, strict=False):
        place = next((i for i, chunk in enumerate(chunks) if chunk.start <= start < chunk.end), None)
        if place is None:
            continue
        body = _without_first_line(source.text[start:end][: chunks[place].end - start], path[-1])
        asked = path[-1] if len(path[-1].split()) > 2 else ": ".join(path[-2:])
        if _long_enough(body):
            yield SelfPair("heading", _clean(asked), first + place, body)


def _sentences(text: str) -> list[str]:
    prose = _NO_PROSE.sub("\n\n", text)
    return [clean for part in _SENTENCE_END.split(prose) if (clean := _clean(part))]


def _faq(sentences: Sequence[str]) -> tuple[str, str] | None:
    """The first question, and the sentences up to the next one."""
    asked = [place for place, said in enumerate(sentences) if said.endswith("?")]
    for place, end in pairwise((*asked, len(sentences))):
        answer = " ".join(sentences[place + 1 : end])
        asked_well = sentences[place][0].isalnum() and sentences[place].count('"') % 2 == 0  # no speech in a story
        if asked_well and len(sentences[place].split()) in _QUESTION_WORDS and _long_enough(answer):
            return sentences[place], answer
    return None


def _term(sentences: Sequence[str], text: str) -> str | None:
    """The first term that a sentence defines (`X is a ...`), or that a line does (`**X**: ...`)."""
    said = (_DEFINED.match(sentence) for sentence in sentences if _long_enough(sentence))
    for match in (*said, _EMPHASISED.search(text)):
        if match is not None and not _VAGUE & set(match["term"].lower().split()):
            return " ".join(match["term"].split())
    return None


def _title(given: object, text: str) -> tuple[str, str]:
    """Title and body of a document without headings; ("", text) if it has no title."""
    first, _, rest = text.partition("\n")
    if isinstance(given, str) and len(given.split()) in _TITLE_WORDS:
        return _clean(given), _without_first_line(text, given)
    clean = _clean(first)
    if rest.strip() and len(clean.split()) in _TITLE_WORDS and clean[-1] not in ".,;:?!":
        return clean, rest.strip()
    return "", text


def _without_first_line(text: str, line: str) -> str:
    """The text without its first line, and the rule below it, if that line says the same as `line`."""
    first, _, rest = text.partition("\n")
    if normalise(first) != normalise(line):
        return text
    return re.sub(r"\A\s*[=-]+[ \t]*\n", "", rest).strip()


def _clean(text: str) -> str:
    """A text on one line without the marks of lists, headings and emphasis."""
    return " ".join(_MARKS.sub("", text.strip()).replace("**", "").split())


def _long_enough(text: str) -> bool:
    return len(text.split()) >= _ANSWER_WORDS
