"""BM25 as a sparse vector: `Bm25Encoder`.

    score(q, d) = sum over the terms t of q:  idf(t) * tf(t, d)
    tf(t, d)    = n (k + 1) / (n + k (1 - b + b |d| / average))        n: how often t occurs in d; |d|: terms of d
    idf(t)      = ln(1 + (N - N_t + 1/2) / (N_t + 1/2))                N texts, N_t of them with t

A document's vector holds tf, a question's vector holds 1 per term, and Qdrant multiplies by idf (`Modifier.IDF`). So a
new document needs no statistics of the others. Term ids and weights are those of FastEmbed's `Qdrant/bm25` and of
Qdrant's server-side `qdrant/bm25`: whoever searches with either of them gets the right answers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from importlib.resources import files
from typing import cast

import mmh3
from py_rust_stemmers import SnowballStemmer

from gircse_rag.errors import InputError

LANGUAGES = (
    "arabic", "danish", "dutch", "english", "finnish", "french", "german", "greek", "hungarian", "italian", "norwegian",
    "portuguese", "romanian", "russian", "spanish", "swedish", "tamil", "turkish",
)  # fmt: skip
"""Languages with a Snowball stemmer. All but Tamil have stop words."""
DEFAULT_LANGUAGE = "english"

_K = 1.2
_B = 0.75
_AVERAGE_TERMS = 256.0
"""Expected terms per text: FastEmbed's and Qdrant's constant, so a vector does not depend on its collection."""
_LONGEST_WORD = 40
_MAX_CACHED_WORDS = 2**17
"""Limits the cache of an encoder to about 20 MB."""
_WORD = re.compile(r"\w+")
_NO_WORD = re.compile(r"[^\w\s]")
_LOWER_WORDS = bytes(ord(chr(i).lower()) if chr(i).isalnum() or i == ord("_") else ord(" ") for i in range(128))
"""Translates ASCII to lower-case words and blanks, several times faster than a regular expression."""
_TRANSLATION = _LOWER_WORDS + bytes(range(128, 256))
_LONGEST_CACHED = 128
"""Bytes of a cached run: Chinese has runs of a whole paragraph, and none occurs twice."""

_Terms = int | tuple[int, ...] | None


class Bm25Encoder:
    """Encodes texts of one language as sparse vectors: a dictionary of term id (31 bits) to weight.

    A term is the stem of a lower-case word of letters, digits and underscores. Stop words and words of more than 40
    characters are dropped, so a text may have no term: its vector is {}.

    Raises:
        InputError: the language is not one of `LANGUAGES`.
    """

    def __init__(self, language: str = DEFAULT_LANGUAGE) -> None:
        if language not in LANGUAGES:
            raise InputError(f"the language {language!r} has no stemmer; choose one of {', '.join(LANGUAGES)}")
        self.language = language
        self._stemmer = SnowballStemmer(language)
        self._stop_words = _read_stop_words(language)
        self._cache = _Cache(self._find_terms)

    def __reduce__(self) -> tuple[type[Bm25Encoder], tuple[str]]:
        """Copies and pickles hold the language only: a stemmer can be neither copied nor pickled."""
        return Bm25Encoder, (self.language,)

    @property
    def settings(self) -> dict[str, str | float]:
        """Everything that a vector depends on, under FastEmbed's names."""
        return {"model": "Qdrant/bm25", "language": self.language, "k": _K, "b": _B, "avg_len": _AVERAGE_TERMS}

    def encode_document(self, text: str) -> dict[int, float]:
        """The weight tf of each term of a text."""
        counts = Counter(map(self._cache.__getitem__, _runs(text)))
        counts.pop(None, None)
        for terms in [key for key in counts if isinstance(key, tuple)] if not text.isascii() else []:
            occurrences = counts.pop(terms)
            for term in terms:
                counts[term] += occurrences
        norm = _K * (1 - _B + _B * counts.total() / _AVERAGE_TERMS)
        weights = {n: n * (_K + 1) / (n + norm) for n in set(counts.values())}
        return cast(dict[int, float], dict(zip(counts, map(weights.__getitem__, counts.values()), strict=True)))

    def encode_question(self, text: str) -> dict[int, float]:
        """The weight 1 of each term of a question."""
        found = map(self._cache.__getitem__, _runs(text))
        terms = (term for each in found for term in (each if isinstance(each, tuple) else (each,)))
        return {term: 1.0 for term in terms if term is not None}

    def _find_terms(self, run: bytes) -> _Terms:
        """The terms of a run: None, one, or several in a tuple."""
        if run.isascii():
            return self._find_term(run.decode())
        # First drop what is no word: the lower case of a capital sigma depends on its neighbours.
        words = _WORD.findall(_NO_WORD.sub(" ", run.decode("utf-8", "surrogatepass")).lower())
        terms = tuple(term for word in words if (term := self._find_term(word)) is not None)
        return terms if len(terms) > 1 else terms[0] if terms else None

    def _find_term(self, word: str) -> int | None:
        """The id of a word's stem, or None if the word is dropped."""
        if word in self._stop_words or len(word) > _LONGEST_WORD or word == "_":
            return None
        stem = self._stemmer.stem_word(word)
        return abs(mmh3.hash(stem)) if stem else None


class _Cache(dict[bytes, _Terms]):
    """The terms of the runs seen lately. Stemming would take most of the time, and few words make up most of a text.

    Thread-safe: at worst, two threads look up the same run.
    """

    def __init__(self, find: Callable[[bytes], _Terms]) -> None:
        super().__init__()
        self._find = find

    def __missing__(self, run: bytes) -> _Terms:
        if len(self) >= _MAX_CACHED_WORDS:
            self.clear()
        terms = self._find(run)
        if len(run) <= _LONGEST_CACHED:
            self[run] = terms
        return terms


def _runs(text: str) -> list[bytes]:
    """The text without its ASCII punctuation and white space: words, or several words joined by other punctuation."""
    return text.encode("utf-8", "surrogatepass").translate(_TRANSLATION).split()


@lru_cache
def _read_stop_words(language: str) -> frozenset[str]:
    path = files("gircse_rag.lexical") / "stop_words" / f"{language}.txt"
    return frozenset(path.read_text(encoding="utf-8").split("\n")) if path.is_file() else frozenset()
