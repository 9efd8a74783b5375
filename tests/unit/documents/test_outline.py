from __future__ import annotations

from typing import get_args

import pytest

from gircse_rag.documents.chunking import By, Chunk, Chunker
from gircse_rag.documents.front_matter import read_title
from gircse_rag.documents.outline import read_outline
from gircse_rag.qdrant import Document
from tests.unit.documents.test_chunking import SPEC, TOKENIZER

BODY = "Intro.\n\n### Seals\n\nChange them.\n"


def _cut(text: str, by: By = "headings") -> list[Chunk]:
    return Chunker(TOKENIZER, SPEC, by=by).cut(Document("a.md", text, markdown=True))


def _titles(text: str) -> list[str]:
    return [path[-1] for path in read_outline(text).paths]


@pytest.mark.parametrize("by", get_args(By))
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    "matter",
    [
        "---\ntitle: Pumps\ntags: [a, b]\n---\n",
        "---  \n# a comment\n'quoted key': >\n  folded\n\n  text\ntags:\n- a\n- b\nlist: [\n  1\n]\nempty:\n...\n",
        "---\ntitle: Pumps: and seals\nurl: https://example.org\n---\n\n",
    ],
)
def test_front_matter_is_neither_a_heading_nor_text(matter: str, end: str, by: By) -> None:
    text = (matter + BODY).replace("\n", end)
    chunks = _cut(text, by)
    assert "".join("".join(chunk.text.split()) for chunk in chunks) == "Intro.###SealsChangethem."
    assert all(text[chunk.start : chunk.end] == chunk.text for chunk in chunks)
    title = () if (found := read_title(text)) is None else (found,)
    assert {chunk.headings for chunk in chunks} <= {title, (*title, "Seals")}
    assert read_outline(text).path_at(len(text)) == (*title, "Seals")


@pytest.mark.parametrize(
    "text",
    [
        "---\nProse between two rules.\n---\n",
        "---\n\nNote: after a blank line.\n\n---\n",
        "---\nNote: this is prose.\n\nIt goes on here.\n\n---\n",
        "---\n* Item: text\n---\n",
        "---\ntitle: never closed\n",
        "----\ntitle: four dashes\n----\n",
        "Text.\n\n---\ntitle: not at the start\n---\n",
    ],
)
def test_prose_between_rules_is_kept(text: str) -> None:
    assert read_outline(text).body == 0
    assert "".join("".join(chunk.text.split()) for chunk in _cut(text)) == "".join(text.split())


def test_a_file_of_nothing_but_front_matter_has_no_chunks() -> None:
    assert _cut("---\ntitle: Pumps\n---") == _cut("---\ntitle: Pumps\n---\n\n") == []


@pytest.mark.parametrize(
    "nested",
    [
        "> # Quoted\n> words",
        "> Quoted\n> ------",
        "* # Listed",
        "1. Listed\n   ===",
        "* > ## Both",
        "- item\n\n  ### Item",
    ],
)
def test_headings_inside_quotes_and_lists_own_nothing(nested: str) -> None:
    text = f"# One\n\n{nested}\n\nAfter.\n\n## Two\n\nEnd.\n"
    assert _titles(text) == ["One", "Two"]
    assert [chunk.headings for chunk in _cut(text)] == [("One",)] * (len(_cut(text)) - 1) + [("One", "Two")]
