from __future__ import annotations

import base64
import hashlib
import json
import random
import re
import sys
from dataclasses import replace
from itertools import pairwise
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.normalizers import Replace
from tokenizers.pre_tokenizers import ByteLevel

from gircse_rag.documents.chunking import By, Chunk, Chunker
from gircse_rag.errors import InputError, MissingExtraError
from gircse_rag.install_hint import install_command
from gircse_rag.qdrant import Document
from gircse_rag.spec import EmbeddingSpec
from gircse_rag.tokens import encode
from tests.stand_in import byte_tokenizer

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


PROSE = "".join(
    f"Sentence {n} of a paragraph, é, with words.{' ' if n % 7 else chr(10) * (n % 3 + 1)}" for n in range(200)
)
PIECES = [
    "Dr. ",
    "A sentence here. ",
    "你好。",
    "\n\n",
    "\n# Head\n",
    "(a ",
    '"q" ',
    "\r\n",
    "\f",
    "```\n",
    "x" * 50,
    "é? ",
]
KINDS: list[dict[str, Any]] = [{}, {"markdown": True}, {"paged": True}, {"language": "python"}, {"language": "bash"}]


def _check_cover(text: str, chunks: list[Chunk], capacity: int) -> None:
    """Chunks cover the text in order, except white space between them, and each fits into `capacity` tokens."""
    assert [chunk.number for chunk in chunks] == list(range(len(chunks)))
    position = 0
    for chunk in chunks:
        assert text[chunk.start : chunk.end] == chunk.text and chunk.text.strip()
        assert text[position : chunk.start].strip() == ""
        assert 0 < len(TOKENIZER(chunk.text)["input_ids"]) <= capacity
        position = chunk.end
    assert text[position:].strip() == ""


CUTS = (
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=400)
    | st.lists(st.sampled_from(PIECES), max_size=40).map("".join),
    st.sampled_from(KINDS),
    st.sampled_from(["tokens", "sentences", "headings"]),
    st.integers(4, 40),
)
"""Texts, kinds of documents, ways to cut, and tokens per chunk."""


@settings(max_examples=200, deadline=None)
@given(*CUTS)
def test_no_chunk_is_truncated_and_no_text_is_lost(text: str, kind: Any, by: By, max_tokens: int) -> None:
    chunker = Chunker(TOKENIZER, SPEC, by=by, max_tokens=max_tokens)
    _check_cover(text, chunker.cut(Document("d", text, **kind)), max_tokens)


@settings(max_examples=200, deadline=None)
@given(*CUTS, st.integers(1, 39))
def test_overlapping_chunks_fit_advance_and_cover_the_text(
    text: str, kind: Any, by: By, max_tokens: int, overlap: int
) -> None:
    chunker = Chunker(TOKENIZER, SPEC, by=by, max_tokens=max_tokens, overlap=overlap % max_tokens)
    chunks = chunker.cut(Document("d", text, **kind))
    position = 0
    for chunk in chunks:
        assert text[chunk.start : chunk.end] == chunk.text and chunk.text.strip()
        assert text[position : chunk.start].strip() == "" and chunk.end > position
        assert len(TOKENIZER(chunk.text)["input_ids"]) <= max_tokens
        position = chunk.end
    assert text[position:].strip() == ""
    for before, after in pairwise(chunks):
        assert after.start > before.start
        repeated = text[after.start : before.end] if after.start < before.end else ""
        assert len(TOKENIZER(repeated)["input_ids"]) <= overlap % max_tokens
        assert not repeated or before.page == after.page


@pytest.mark.parametrize("by", get_args(By))
def test_chunks_repeat_the_end_of_the_chunk_before(by: By) -> None:
    chunks = Chunker(TOKENIZER, SPEC, by=by, max_tokens=30, overlap=12).cut(Document("d", "One two. Three. Four. " * 4))
    pairs = list(pairwise(chunks))
    assert len(pairs) > 2 and all(0 < before.end - after.start <= 12 for before, after in pairs)
    whole = Chunker(TOKENIZER, SPEC, by=by, max_tokens=30).cut(Document("d", "One two. Three. Four. " * 4))
    assert all(after.start >= before.end for before, after in pairwise(whole))


def test_the_overlap_is_part_of_the_recipe_and_must_be_below_the_capacity() -> None:
    recipes = [Chunker(TOKENIZER, SPEC, overlap=overlap).recipe for overlap in (0, 1, 2)]
    assert recipes[0] == Chunker(TOKENIZER, SPEC).recipe == "1/40" and len(set(recipes)) == 3
    for overlap in (-1, 40, True, 1.5):
        with pytest.raises(InputError, match="it must be from 0 to 39 tokens"):
            Chunker(TOKENIZER, SPEC, overlap=overlap)  # type: ignore[arg-type]


@settings(max_examples=300, deadline=None)
@given(
    st.text(st.characters(codec="ascii") | st.sampled_from(" \n\r\f\v\x1c\x85\xa0é"), min_size=1, max_size=44)
    | st.lists(st.sampled_from([" \n", "\x1f", "\n\n", "a. ", "# b\n", "\u2003", "(c"]), max_size=14).map("".join)
)
def test_a_text_that_fits_gives_the_splitters_chunks(text: str) -> None:
    """Short ASCII texts skip the splitter if every token is at least one byte; the chunks must be the same."""
    chunker = Chunker(TOKENIZER, SPEC)
    made = [(offset, piece) for offset, piece in chunker._plain.chunk_indices(text) if piece.strip()]
    assert [(chunk.start, chunk.text) for chunk in chunker.cut(Document("d", text))] == made


@pytest.mark.parametrize(
    "changed",
    [{"normalizer": Replace("a", "aa")}, {"pre_tokenizer": ByteLevel(add_prefix_space=True)}],
    ids=["normalizer", "prefix space"],
)
def test_the_splitter_runs_if_a_text_may_have_more_tokens_than_bytes(changed: dict[str, Any]) -> None:
    tokenizer = byte_tokenizer().backend_tokenizer
    for name, part in changed.items():
        setattr(tokenizer, name, part)
    chunks = Chunker(tokenizer, SPEC, max_tokens=5).cut(Document("d", "!\n\naa"))
    assert [chunk.text for chunk in chunks] == ["!", "aa"]


@pytest.mark.parametrize(
    ("text", "markdown", "digest"),
    [
        (PROSE + "x" * 9000, False, "6dffe897b9b938399112f67c57d349d7ffd872a56a95c44eca30f6ad1931edcf"),
        (PROSE + "x" * 9000, True, "6dffe897b9b938399112f67c57d349d7ffd872a56a95c44eca30f6ad1931edcf"),
        (MARKDOWN * 3, False, "583b01ba6c5cf3416f5de6318f558f581bf2b26d95264fd32bb9f405ff2c5631"),
        (MARKDOWN * 3, True, "710d94e122d5844affaab3dab90232a205b3c54bce4b49a312984392c7b531fd"),
    ],
)
def test_existing_collections_keep_their_chunks(text: str, markdown: bool, digest: str) -> None:
    """A changed digest or recipe would embed every existing collection again."""
    chunker = Chunker(TOKENIZER, SPEC)
    document = Document("d", text, markdown=markdown)
    assert chunker.recipe == "1/40"
    assert chunker.recipe_of(document) == ("1/40/outline" if markdown else "1/40")
    assert SPEC.max_length == 40
    chunks = [[c.number, c.text, c.start, c.end, list(c.headings)] for c in chunker.cut(document)]
    assert hashlib.sha256(json.dumps(chunks).encode()).hexdigest() == digest


def test_by_sentences_chunks_are_whole_sentences() -> None:
    text = (
        "Dr. Smith came at 3.5 p.m. today. He left. Why? Nobody, e.g. Mr. Jones, knew.\n\n"
        "A new\nparagraph begins. It ends."
    )
    chunker = Chunker(TOKENIZER, SPEC, by="sentences")
    assert [chunk.text for chunk in chunker.cut(Document("d", text))] == [
        "Dr. Smith came at 3.5 p.m. today.",
        "He left. Why?",
        "Nobody, e.g. Mr. Jones, knew.",
        "A new\nparagraph begins. It ends.",
    ]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(4, 60), st.sampled_from([" ", "\n", "\n\n", "  "])), min_size=1, max_size=20))
def test_by_sentences_only_overlong_sentences_are_cut(sentences: list[tuple[int, str]]) -> None:
    text = "".join("Word " + "w" * size + "." + gap for size, gap in sentences)
    starts, ends, position = set(), set(), 0
    for size, gap in sentences:
        starts.add(position)
        ends.add(position + size + 6)
        position += size + 6 + len(gap)
    chunks = Chunker(TOKENIZER, SPEC, by="sentences").cut(Document("d", text))
    for chunk in chunks:
        inside = [start for start in starts if start < chunk.end and chunk.start < start]
        whole = chunk.start in starts and chunk.end in ends
        assert whole or not inside
    # Chunks are full: the first sentence of the next chunk would not have fitted.
    for one, two in pairwise(chunks):
        if {one.start, two.start} <= starts and {one.end, two.end} <= ends:
            first = text[one.start : min(end for end in ends if end > two.start)]
            assert len(TOKENIZER(first)["input_ids"]) > SPEC.max_length


@pytest.mark.parametrize("by", ["headings", "sentences"])
def test_by_headings_and_sentences_no_chunk_spans_two_sections(by: By) -> None:
    chunker = Chunker(TOKENIZER, replace(SPEC, max_length=400), by=by)
    chunks = chunker.cut(Document("d", MARKDOWN, markdown=True))
    assert [chunk.headings for chunk in chunks] == [
        (),
        ("Guide",),
        ("Guide", "Install `it`"),
        ("Setext heading",),
        ("Setext heading", "Deep"),
    ]
    assert chunks[1].text.startswith("# Guide") and chunks[2].text.endswith("```")
    assert len(chunker.cut(Document("d", MARKDOWN))) <= 2  # plain text has no sections


def test_source_code_is_cut_at_its_definitions() -> None:
    text = "import os\n\n\ndef first(a):\n    return a + 1\n\n\nclass B:\n    def m(self):\n        pass\n"
    document = Document("a.py", text, language="python")
    chunks = [chunk.text for chunk in Chunker(TOKENIZER, SPEC, by="sentences").cut(document)]
    assert chunks == ["import os", "def first(a):\n    return a + 1", "class B:\n    def m(self):\n        pass"]
    with pytest.raises(InputError, match="in the language 'klingon'"):
        Chunker(TOKENIZER, SPEC).cut(replace(document, language="klingon"))


def test_code_nested_too_deep_is_cut_as_text() -> None:
    chunker = Chunker(TOKENIZER, SPEC, by="sentences")

    def code(levels: int) -> Document:
        text = "def first(a):\n    return a + 1\n\n\nx = " + "[ " * levels + "1" + " ]" * levels + "\n"
        return Document("a.py", text, language="python")

    for levels in (5, 64):
        assert chunker.recipe_of(code(levels)) == f"{chunker.recipe}/python"  # as in stored chunks
    assert chunker.recipe_of(code(65)) == f"{chunker.recipe}/python/flat"
    assert chunker.cut(code(65)) == Chunker(TOKENIZER, SPEC).cut(replace(code(65), language=None))
    assert chunker.cut(code(64)) != Chunker(TOKENIZER, SPEC).cut(replace(code(64), language=None))


@pytest.mark.parametrize("by", get_args(By))
def test_no_chunk_spans_two_pages(by: By) -> None:
    text = "one. on\n\fpage two\n\f\n\f" + "four " * 20 + "\n\ffive."
    document = Document("a.pdf", text, paged=True)
    chunks = Chunker(TOKENIZER, SPEC, by=by, max_tokens=30).cut(document)
    assert [chunk.page for chunk in chunks] == [1, 2, 4, 4, 4, 4, 5]
    assert all(chunk.text in text.split("\f")[(chunk.page or 0) - 1] for chunk in chunks)
    assert all(c.page is None for c in Chunker(TOKENIZER, SPEC, by=by).cut(replace(document, paged=False)))


def test_every_property_that_changes_the_chunks_changes_the_recipe() -> None:
    chunkers = [Chunker(TOKENIZER, SPEC, by=by, max_tokens=n) for by in get_args(By) for n in (None, 20)]
    documents = [Document("d", "text", **kind) for kind in KINDS]
    assert len({chunker.recipe_of(document) for chunker in chunkers for document in documents}) == 6 * 5


def test_invalid_chunker_options_raise() -> None:
    with pytest.raises(InputError, match="by 'words'; choose one of tokens, sentences, headings"):
        Chunker(TOKENIZER, SPEC, by="words")  # type: ignore[arg-type]
    for wrong in (0, 41):
        with pytest.raises(InputError, match=f"max_tokens is {wrong}; the model leaves room for 1 to 40"):
            Chunker(TOKENIZER, SPEC, max_tokens=wrong)


def test_sentences_need_their_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentencex", None)
    with pytest.raises(MissingExtraError, match=re.escape(install_command("sentences"))):
        Chunker(TOKENIZER, SPEC, by="sentences")
    assert Chunker(TOKENIZER, SPEC).cut(Document("d", "text"))


@pytest.mark.parametrize("text", ['"quoted" ' * 30, "->" * 100, "plain words of a document " * 20, "é👩‍👩‍👧 " * 40])
def test_chunks_leave_room_for_template_and_suffix(text: str) -> None:
    spec = replace(SPEC, document_template="passage:{text}", suffix="<end>")
    chunker = Chunker(TOKENIZER, spec)
    assert chunker.capacity <= 40 - len("passage:<end>")
    for chunk in chunker.cut(Document("d", text)):
        assert not encode(TOKENIZER, spec, chunk.text, role="document", instruction=None).truncated


def test_bare_documents_use_the_whole_window() -> None:
    assert Chunker(TOKENIZER, SPEC).capacity == SPEC.max_length
    (chunk,) = Chunker(TOKENIZER, SPEC).cut(Document("d", "a" * 40))
    assert chunk.text == "a" * 40


def test_no_room_for_text_is_an_error() -> None:
    with pytest.raises(InputError, match="no room for text"):
        Chunker(TOKENIZER, replace(SPEC, suffix="x" * 40))


def test_markdown_is_cut_at_headings_and_keeps_their_path() -> None:
    chunks = Chunker(TOKENIZER, SPEC).cut(Document("d", MARKDOWN, markdown=True))
    paths = {chunk.text.strip().splitlines()[-1]: chunk.headings for chunk in chunks}
    assert paths["Before any heading."] == ()
    assert paths["Opening words of the guide."] == ("Guide",)
    assert paths["Run the installer and wait for it."] == ("Guide", "Install `it`")
    assert paths["Under the setext heading."] == ("Setext heading",)
    assert paths["At the bottom."] == ("Setext heading", "Deep")
    assert all("comment" not in title for path in paths.values() for title in path)


def test_heading_paths_survive_every_line_ending() -> None:
    for end in ("\n", "\r\n", "\r"):
        text = MARKDOWN.replace("\n", end)
        chunks = Chunker(TOKENIZER, SPEC).cut(Document("d", text, markdown=True))
        assert chunks[-1].headings == ("Setext heading", "Deep")


def test_plain_text_has_no_headings() -> None:
    assert all(chunk.headings == () for chunk in Chunker(TOKENIZER, SPEC).cut(Document("d", MARKDOWN)))


def test_a_truncating_tokenizer_loses_no_text_and_is_not_changed() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(10)
    chunks = Chunker(tokenizer, SPEC).cut(Document("d", "word " * 50))
    assert max(len(chunk.text) for chunk in chunks) <= 40 and len(chunks) > 5
    assert tokenizer.backend_tokenizer.truncation["max_length"] == 10


def test_a_long_run_without_white_space_is_cut_like_any_other() -> None:
    text = base64.b64encode(random.Random(0).randbytes(120_000)).decode()
    chunks = Chunker(TOKENIZER, replace(SPEC, max_length=512)).cut(Document("d", text))
    assert "".join(chunk.text for chunk in chunks) == text
    assert all(text[chunk.start : chunk.end] == chunk.text for chunk in chunks)
    assert max(len(chunk.text) for chunk in chunks) <= 512


def test_the_recipe_changes_with_the_capacity() -> None:
    assert Chunker(TOKENIZER, SPEC).recipe != Chunker(TOKENIZER, replace(SPEC, max_length=41)).recipe
