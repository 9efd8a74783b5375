from __future__ import annotations

import base64
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gircse_rag.errors import InputError
from gircse_rag.qdrant.chunking import Chunker
from gircse_rag.spec import EmbeddingSpec
from gircse_rag.tokens import encode
from tests.unit.qdrant.standin import byte_tokenizer

TOKENIZER = byte_tokenizer()
SPEC = EmbeddingSpec(base_model="m", base_hash="b", tokenizer_hash="t", dimension=8, max_length=40)
MARKDOWN = """Before any heading.

# Guide

Opening words of the guide.

## Install `it`

Run the installer and wait for it.

```sh
# not a heading, a comment
```

Setext heading
==============

Under the setext heading.

### Deep

At the bottom.
"""


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=400), st.booleans())
def test_no_chunk_is_truncated_and_no_text_is_lost(text: str, markdown: bool) -> None:
    chunks = Chunker(TOKENIZER, SPEC).chunks(text, markdown=markdown)
    assert [chunk.number for chunk in chunks] == list(range(len(chunks)))
    position = 0
    for chunk in chunks:
        assert text[chunk.start : chunk.end] == chunk.text
        assert text[position : chunk.start].strip() == ""
        assert len(TOKENIZER(chunk.text)["input_ids"]) <= SPEC.max_length
        position = chunk.end
    assert text[position:].strip() == ""


@pytest.mark.parametrize("text", ['"quoted" ' * 30, "->" * 100, "plain words of a document " * 20, "é👩‍👩‍👧 " * 40])
def test_template_and_suffix_are_left_room_for(text: str) -> None:
    spec = replace(SPEC, document_template="passage:{text}", suffix="<end>")
    chunker = Chunker(TOKENIZER, spec)
    assert chunker.capacity <= 40 - len("passage:<end>")
    for chunk in chunker.chunks(text):
        assert not encode(TOKENIZER, spec, chunk.text, role="document", instruction=None).truncated


def test_bare_documents_use_the_whole_window() -> None:
    assert Chunker(TOKENIZER, SPEC).capacity == SPEC.max_length
    (chunk,) = Chunker(TOKENIZER, SPEC).chunks("a" * 40)
    assert chunk.text == "a" * 40


def test_no_room_for_text_is_an_error() -> None:
    with pytest.raises(InputError, match="no room for text"):
        Chunker(TOKENIZER, replace(SPEC, suffix="x" * 40))


def test_markdown_is_cut_at_headings_and_keeps_their_path() -> None:
    chunks = Chunker(TOKENIZER, SPEC).chunks(MARKDOWN, markdown=True)
    paths = {chunk.text.strip().splitlines()[-1]: chunk.headings for chunk in chunks}
    assert paths["Before any heading."] == ()
    assert paths["Opening words of the guide."] == ("Guide",)
    assert paths["Run the installer and wait for it."] == ("Guide", "Install `it`")
    assert paths["Under the setext heading."] == ("Setext heading",)
    assert paths["At the bottom."] == ("Setext heading", "Deep")
    assert all("comment" not in title for path in paths.values() for title in path)


def test_heading_paths_survive_every_kind_of_line_end() -> None:
    for end in ("\n", "\r\n", "\r"):
        text = MARKDOWN.replace("\n", end)
        chunks = Chunker(TOKENIZER, SPEC).chunks(text, markdown=True)
        assert chunks[-1].headings == ("Setext heading", "Deep")


def test_plain_text_has_no_headings() -> None:
    assert all(chunk.headings == () for chunk in Chunker(TOKENIZER, SPEC).chunks(MARKDOWN))


def test_a_tokenizer_set_to_truncate_does_not_hide_text_and_stays_as_it_is() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(10)
    chunks = Chunker(tokenizer, SPEC).chunks("word " * 50)
    assert max(len(chunk.text) for chunk in chunks) <= 40 and len(chunks) > 5
    assert tokenizer.backend_tokenizer.truncation["max_length"] == 10


def test_a_long_run_without_white_space_is_cut_like_any_other() -> None:
    text = base64.b64encode(random.Random(0).randbytes(120_000)).decode()
    chunks = Chunker(TOKENIZER, replace(SPEC, max_length=512)).chunks(text)
    assert "".join(chunk.text for chunk in chunks) == text
    assert all(text[chunk.start : chunk.end] == chunk.text for chunk in chunks)
    assert max(len(chunk.text) for chunk in chunks) <= 512


def test_the_recipe_changes_with_the_capacity() -> None:
    assert Chunker(TOKENIZER, SPEC).recipe != Chunker(TOKENIZER, replace(SPEC, max_length=41)).recipe
