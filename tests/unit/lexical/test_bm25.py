from __future__ import annotations

import copy
import gzip
import json
import pickle
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gircse_rag.errors import InputError
from gircse_rag.lexical import LANGUAGES, Bm25Encoder, bm25

RECORDED = Path(__file__).with_name("fastembed_bm25.jsonl.gz")
"""500 texts in 18 languages with the vectors of FastEmbed 0.9.1, which cannot be installed beside huggingface-hub 2."""


def _recorded() -> Iterator[dict[str, Any]]:
    with gzip.open(RECORDED, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def test_vectors_are_those_of_fastembed_for_500_texts() -> None:
    encoders = {language: Bm25Encoder(language) for language in LANGUAGES}
    seen = 0
    for row in _recorded():
        encoder, text = encoders[row["language"]], row["text"]
        expected = dict(zip(row["ids"], row["weights"], strict=True))
        assert encoder.encode_document(text) == pytest.approx(expected, abs=1e-6), text
        assert encoder.encode_question(text) == dict.fromkeys(expected, 1.0), text
        seen += 1
    assert seen == 500


def test_vectors_are_those_of_qdrant_itself_for_ordinary_words() -> None:
    """Qdrant splits at underscores and keeps long words, FastEmbed does not; on all other ASCII texts they agree."""
    edge = pytest.importorskip("qdrant_edge", reason="the edge extra is not installed")
    theirs, ours, compared = edge.Bm25(), Bm25Encoder(), 0
    for row in _recorded():
        if row["language"] == "english" and row["text"].isascii() and not re.search(r"_|\w{41}", row["text"]):
            vector = theirs.embed_document(row["text"])
            expected = dict(zip(vector.indices, vector.values, strict=True))
            assert ours.encode_document(row["text"]) == pytest.approx(expected, abs=1e-5), row["text"]
            compared += 1
    assert compared > 100


def test_every_stop_word_is_one_of_qdrants_and_has_no_term() -> None:
    edge = pytest.importorskip("qdrant_edge", reason="the edge extra is not installed")
    for language in sorted(set(LANGUAGES) - {"tamil"}):
        text = (files("gircse_rag.lexical") / "stop_words" / f"{language}.txt").read_text(encoding="utf-8")
        words = [word for word in text.split("\n") if word.isalnum()]
        assert len(words) > 50, language
        theirs = edge.Bm25(edge.Bm25Config(language=language))
        assert [word for word in words if theirs.embed_query(word).indices] == [], language
        assert [word for word in words if Bm25Encoder(language).encode_question(word)] == [], language


@settings(max_examples=300, deadline=None)
@given(
    st.text(st.sampled_from("aA1_ -.\n\x1c\u00a0é\u2019Σ\u0391ςİǅ你。\u0307\ud800"), max_size=60),
    st.sampled_from(["english", "greek"]),
)
def test_words_are_those_of_a_regular_expression(text: str, language: str) -> None:
    """The encoder cuts bytes at ASCII punctuation first, which is fast; the words must be the same."""
    encoder = Bm25Encoder(language)
    words = re.findall(r"\w+", re.sub(r"[^\w\s]", " ", text).lower())
    terms = [term for term in map(encoder._find_term, words) if term is not None]
    weights = {n: n * 2.2 / (n + 1.2 * (0.25 + 0.75 * len(terms) / 256)) for n in range(1, 61)}
    assert encoder.encode_document(text) == pytest.approx({t: weights[terms.count(t)] for t in terms})
    assert encoder.encode_question(text) == dict.fromkeys(terms, 1.0)


def test_a_long_run_is_not_cached() -> None:
    encoder = Bm25Encoder()
    assert len(encoder.encode_document("\uff0c".join(f"词{n}" for n in range(500)))) == 500
    assert not encoder._cache


@pytest.mark.parametrize("text", ["", "  \n", "the and of to", "?!... ---", "🎉🎉", "_", "x" * 41])
def test_a_text_without_terms_has_an_empty_vector(text: str) -> None:
    assert Bm25Encoder().encode_document(text) == Bm25Encoder().encode_question(text) == {}


def test_a_weight_grows_with_occurrences_and_shrinks_with_length() -> None:
    encode = Bm25Encoder().encode_document
    (once,) = encode("cat").values()
    (twice,) = encode("cat cat").values()
    longer = max(encode("cat " + " ".join(f"w{i}" for i in range(600))).values())
    assert longer < once < twice < 2.2


def test_forms_of_a_word_share_a_term() -> None:
    assert len(Bm25Encoder().encode_document("Running runs, RUN run!")) == 1
    assert len(Bm25Encoder("german").encode_document("Bücher Büchern")) == 1


def test_an_unknown_language_is_refused() -> None:
    with pytest.raises(InputError, match=r"'klingon' has no stemmer; choose one of arabic, .*turkish"):
        Bm25Encoder("klingon")


def test_a_full_cache_does_not_change_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [row["text"] for row in _recorded() if row["language"] == "english"]
    expected = [Bm25Encoder().encode_document(text) for text in texts]
    monkeypatch.setattr(bm25, "_MAX_CACHED_WORDS", 3)
    encoder = Bm25Encoder()
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(encoder.encode_document, texts)) == expected
    assert len(encoder._cache) <= 3 + 4


def test_an_encoder_can_be_pickled_and_copied() -> None:
    encoder = Bm25Encoder("german")
    encoder.encode_document("alte Häuser")
    for other in (pickle.loads(pickle.dumps(encoder)), copy.deepcopy(encoder)):
        assert other.encode_document("altes Haus") == encoder.encode_document("altes Haus")
