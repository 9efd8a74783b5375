from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from gircse_rag import Embedder
from gircse_rag.documents.chunking import Chunker
from gircse_rag.documents.document import Document
from gircse_rag.errors import InputError
from gircse_rag.spec import EmbeddingSpec
from gircse_rag.tokens import Prompt, check_text, encode, tokenizer_of
from tests import tiny
from tests.stand_in import StandIn

TOKENIZER = tiny.tokenizer()
SPEC = EmbeddingSpec(base_model="m", base_hash="b", tokenizer_hash="t", dimension=32, max_length=64)
INSTRUCTION = "find texts"
MERGING = ['"quoted" text', "(note) text", "->x text", ":: text", "'s text"]


def _query(text: str, spec: EmbeddingSpec = SPEC, instruction: str = INSTRUCTION) -> Prompt:
    return encode(TOKENIZER, spec, text, role="query", instruction=instruction)


def _ids(text: str) -> tuple[int, ...]:
    return tuple(TOKENIZER(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("text", MERGING)
def test_text_that_merges_with_the_template_is_tokenised_with_it(text: str) -> None:
    head = f"Instruct: {INSTRUCTION}\nQuery:"
    assert _ids(head) + _ids(text) != _ids(head + text), "this text must merge with the template"
    assert _query(text) == Prompt(_ids(head + text), truncated=False)


@pytest.mark.parametrize("text", MERGING)
@pytest.mark.parametrize("suffix", ["", "<|end|>"])
def test_truncation_only_cuts_the_end_of_the_body(text: str, suffix: str) -> None:
    spec = replace(SPEC, suffix=suffix)
    long = text + " the way of the world" * 30
    whole = _ids(f"Instruct: {INSTRUCTION}\nQuery:{long}")
    kept = spec.max_length - len(_ids(suffix))
    prompt = _query(long, spec)
    assert prompt.truncated
    assert prompt.token_ids == whole[:kept] + _ids(suffix)


def test_a_text_that_just_fits_is_not_truncated() -> None:
    text = "the way of the world" * 3
    exact = replace(SPEC, max_length=len(_ids(text)))
    assert encode(TOKENIZER, exact, text, role="document", instruction=None) == Prompt(_ids(text), truncated=False)
    short = replace(exact, max_length=exact.max_length - 1)
    assert encode(TOKENIZER, short, text, role="document", instruction=None) == Prompt(_ids(text)[:-1], truncated=True)


def test_a_suffix_of_ordinary_text_survives_even_if_it_merges() -> None:
    spec = replace(SPEC, suffix=":'s the end", max_length=40)
    prompt = _query("world:" * 100, spec)
    assert prompt.truncated
    assert len(prompt.token_ids) == 40
    assert TOKENIZER.decode(prompt.token_ids).endswith(":'s the end")
    assert TOKENIZER.decode(prompt.token_ids).startswith(f"Instruct: {INSTRUCTION}\nQuery:world:")


def test_documents_are_bare_and_symmetric_texts_take_the_instruction() -> None:
    document = encode(TOKENIZER, SPEC, "text", role="document", instruction=None)
    symmetric = encode(TOKENIZER, SPEC, "text", role="symmetric", instruction=INSTRUCTION)
    assert document.token_ids == _ids("text")
    assert symmetric == _query("text")


def test_a_missing_instruction_falls_back_to_the_default() -> None:
    spec = replace(SPEC, max_length=200)
    default = encode(TOKENIZER, spec, "text", role="query", instruction=None)
    assert default == _query("text", spec, instruction=spec.default_instruction)


def test_placeholders_in_an_instruction_are_not_expanded() -> None:
    prompt = _query("body", instruction="about {text} and {instruction}")
    assert TOKENIZER.decode(prompt.token_ids) == "Instruct: about {text} and {instruction}\nQuery:body"


def test_an_instruction_longer_than_the_window_is_refused() -> None:
    with pytest.raises(InputError, match=r"text 3 has no room.*of the 64 tokens"):
        encode(TOKENIZER, SPEC, "text", role="query", instruction="way of the world " * 100, index=3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        (" \n\t\f\x1c", "empty"),
        (7, "not a string but int"),
        (None, "not a string but NoneType"),
        (b"bytes", "not a string but bytes"),
        ("ok \ud800 not", r"lone surrogate U\+D800 at character 3"),
        ("a\x00b", r"control character U\+0000 \(NUL\) at character 1, as"),
        ("\x1b[31mred", r"control character U\+001B \(escape\) at character 0, as"),
        ("one\nb\bc\n", r"control character U\+0008 \(backspace\) at character 5 \(line 2\), as"),
        ("DOS file\r\n\x1a", r"control character U\+001A \(Ctrl-Z\) at character 10 \(line 2\), as"),
        ("\x02", r"control character U\+0002 at character 0, as"),
    ],
)
def test_unusable_texts_are_reported_with_their_index(text: object, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        check_text(text, 5)
    assert caught.value.index == 5
    assert "text 5" in str(caught.value)


@pytest.mark.slow
def test_a_megabyte_of_text_is_truncated_and_flagged() -> None:
    prompt = _query("the way of the world " * 50_000)
    assert prompt.truncated
    assert len(prompt.token_ids) == SPEC.max_length


@settings(max_examples=200, deadline=None)
@given(
    text=st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1).filter(str.strip),
    max_length=st.integers(20, 60),
    suffix=st.sampled_from(["", "<|end|>", " end"]),
)
def test_any_text_keeps_template_and_suffix(text: str, max_length: int, suffix: str) -> None:
    spec = replace(SPEC, max_length=max_length, suffix=suffix)
    whole = _ids(f"Instruct: {INSTRUCTION}\nQuery:{text}{suffix}")
    prompt = _query(text, spec)
    assert prompt.truncated == (len(whole) > max_length)
    assert len(prompt.token_ids) == min(len(whole), max_length)
    decoded = TOKENIZER.decode(prompt.token_ids)
    assert decoded.startswith(f"Instruct: {INSTRUCTION}\nQuery:")
    assert decoded.endswith(suffix)


def test_a_text_on_which_the_tokenizer_panics_is_refused() -> None:
    """A regular expression may backtrack without end; the tokenizer then panics, which is no Exception."""
    fast = Tokenizer.from_str(TOKENIZER.backend_tokenizer.to_str())
    fast.pre_tokenizer = pre_tokenizers.Split(Regex("(a|aa)+$"), "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=fast)
    with pytest.raises(InputError, match=r"text 3 makes a library fail \(.*retry-limit.*\); leave it out") as refused:
        encode(tokenizer, SPEC, "a" * 60 + "c", role="document", instruction=None, index=3)
    assert refused.value.index == 3
    with pytest.raises(InputError, match="its text makes a library fail"):
        Chunker(tokenizer, SPEC).cut(Document("d", "a" * 60 + "c"))
    embedder = Embedder(StandIn(32).words, tokenizer, SPEC)
    result = embedder.embed(["b", "a" * 60 + "c"], role="document", on_error="return")
    assert list(result.errors) == [1]


def test_an_embedder_of_ones_own_may_have_only_a_transformers_tokenizer(tiny_embedder: Embedder) -> None:
    own: Any = SimpleNamespace(tokenizer=tiny_embedder.tokenizer)
    assert tokenizer_of(own).get_vocab() == tokenizer_of(tiny_embedder).get_vocab()
