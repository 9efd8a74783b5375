from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gircse_rag.documents import read_documents
from gircse_rag.documents.chunking import By, Chunk, Chunker
from gircse_rag.documents.outline import read_outline
from gircse_rag.qdrant import Document
from tests.unit.documents.test_chunking import SPEC, TOKENIZER

PRICES = "| item | euro |\n|---|---|\n" + "".join(f"| no {n} | {n} |\n" for n in range(9))
HEADER = "| item | euro |\n|---|---|\n"

CELL = st.text(st.sampled_from("ab 0.é你&#-"), max_size=12).map(str.strip) | st.sampled_from(["a\\|b", "`x`", "1. y"])


@st.composite
def _tables(draw: st.DrawFn) -> str:
    columns = draw(st.integers(2, 3))
    cells = st.lists(CELL, min_size=columns, max_size=columns)
    rows = [
        draw(cells.map(lambda row: ["h" + row[0], *row[1:]])),
        ["---"] * columns,
        *draw(st.lists(cells, max_size=9)),
    ]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


PROSE = st.sampled_from(
    ["# Head\n", "Some words. And more of them.\n", "- one\n- two\n", "x" * 60 + "\n", "> quoted\n"]
)
DOCUMENTS = st.lists(PROSE | _tables(), min_size=1, max_size=6)


def _cut(text: str, max_tokens: int = 60, **options: Any) -> list[Chunk]:
    return Chunker(TOKENIZER, replace(SPEC, max_length=200), max_tokens=max_tokens, **options).cut(
        Document("d", text, markdown=True)
    )


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(
    DOCUMENTS, st.sampled_from(["\n", "\r\n"]), st.integers(8, 120), st.sampled_from(get_args(By)), st.integers(0, 119)
)
def test_every_part_of_a_table_has_its_header(blocks: list[str], end: str, limit: int, by: By, overlap: int) -> None:
    overlap %= limit
    text = "\n".join(blocks).replace("\n", end)
    chunks = _cut(text, limit, by=by, overlap=overlap)
    position = 0
    for chunk in chunks:
        assert chunk.text == chunk.header + text[chunk.start : chunk.end] and chunk.text.strip()
        assert len(TOKENIZER(chunk.text)["input_ids"]) <= limit
        assert text[position : chunk.start].strip() == "" and chunk.end > position
        position = chunk.end
    assert text[position:].strip() == ""
    at = 0
    for block in blocks:
        table = block.replace("\n", end)
        start, stop = at, at + len(table)
        at = stop + len(end)
        lines = table.splitlines(keepends=True)
        if not table.startswith("| h") or len(lines) < 3:
            assert all(not chunk.header for chunk in chunks if start <= chunk.start < stop)
            continue
        header = "".join(lines[:2])
        size, above = len(TOKENIZER(table)["input_ids"]), len(TOKENIZER(header)["input_ids"])
        parts = [chunk for chunk in chunks if start < chunk.start < stop]
        if size <= limit:
            assert not parts  # nor does an overlap begin in it
        elif above + 4 <= limit // 2:
            assert all(chunk.header == header for chunk in parts)
            rows = {start + len(header) + sum(map(len, lines[2:n])) for n in range(2, len(lines))}
            for before, after in pairwise([chunk for chunk in chunks if start <= chunk.start < stop]):
                assert after.start >= before.end  # no row is repeated
                row = max(row for row in rows if row <= after.start)
                following = text[row:stop].splitlines()[0]
                assert after.start == row or above + len(TOKENIZER(following)["input_ids"]) > limit - 4


@pytest.mark.parametrize("by", get_args(By))
def test_a_table_is_cut_between_rows_below_its_header(by: By) -> None:
    text = f"# Prices\n\nAll of 2020.\n\n{PRICES}\nMore soon.\n"
    chunks = _cut(text, by=by)
    assert [chunk.text for chunk in chunks] == [
        "# Prices\n\nAll of 2020.",
        *(f"{HEADER}| no {n} | {n} |\n| no {n + 1} | {n + 1} |" for n in range(0, 8, 2)),
        HEADER + "| no 8 | 8 |",
        "More soon.",
    ]
    assert [chunk.header for chunk in chunks] == ["", "", *[HEADER] * 4, ""]
    assert {chunk.headings for chunk in chunks} == {("Prices",)}
    assert [text[chunk.start : chunk.end] for chunk in chunks[2:4]] == [
        "| no 2 | 2 |\n| no 3 | 3 |",
        "| no 4 | 4 |\n| no 5 | 5 |",
    ]


@pytest.mark.parametrize("overlap", [0, 5])
def test_a_table_that_fits_is_not_cut_after_a_word_that_does_not(overlap: int) -> None:
    table = "| h |  |\n| --- | --- |\n|  |  |"
    chunks = _cut(f"{'x' * 60}\n\n{table}\n", 35, overlap=overlap)
    assert [chunk.text for chunk in chunks if "|" in chunk.text] == [table]


@pytest.mark.parametrize("by", get_args(By))
@pytest.mark.parametrize("prefix", ["> ", "   "])
def test_a_table_inside_a_quote_or_a_list_repeats_its_header(prefix: str, by: By) -> None:
    table = "".join(prefix + line for line in PRICES.splitlines(keepends=True))
    chunks = _cut(f"1. Prices\n\n{table}\nEnd.\n" if prefix == "   " else f"{table}\nEnd.\n", 80, by=by)
    rows = [chunk for chunk in chunks if "no " in chunk.text]
    assert len(rows) > 2 and all("item | euro" in chunk.text for chunk in rows)


def test_a_row_that_does_not_fit_is_cut_below_the_header() -> None:
    long = "word " * 12
    chunks = _cut(f"| a | b |\n|-|-|\n| {long}| 1 |\n| x | 2 |\n", 40)
    assert chunks[0].text == "| a | b |\n|-|-|"
    assert all(chunk.text.startswith("| a | b |\n|-|-|") for chunk in chunks)
    assert "".join(chunk.text.removeprefix(chunk.header) for chunk in chunks[1:-1]).count("word") == 12
    assert chunks[-1].text.endswith("| x | 2 |")


@pytest.mark.parametrize(
    "text",
    [
        "| | |\n|---|---|\n" + "| a | b |\n" * 9,  # nothing to repeat
        "| " + "long " * 7 + "| b |\n|---|---|\n" + "| a | b |\n" * 9,  # more than half of a chunk
        "```\n" + PRICES + "```\n",
        "".join(f"| no {n} | {n} |\n" for n in range(9)),
    ],
    ids=["blank header", "long header", "code", "no header"],
)
def test_other_tables_are_cut_as_text(text: str) -> None:
    assert all(not chunk.header for chunk in _cut(text))


def test_only_markdown_has_tables() -> None:
    assert all(not chunk.header for chunk in Chunker(TOKENIZER, SPEC).cut(Document("d", PRICES)))


def test_the_recipe_names_tables() -> None:
    chunker = Chunker(TOKENIZER, SPEC)
    recipe = chunker.recipe_of(Document("d", "a | b\n", markdown=True))
    assert recipe == "1/40/outline"  # as in stored chunks: a collection without tables is not written again
    for rule in ("|---|---|", "--- | ---", ":-:|-", "> |-|-|", "|-|"):
        for end in ("\n", "\r", "\r\n"):
            document = Document("d", f"text{end}{end}| a | b |{end}{rule}{end}| 1 | 2 |", markdown=True)
            assert chunker.recipe_of(document) == f"{recipe}/tables"
    assert chunker.recipe_of(Document("d", PRICES)) == "1/40"


def test_headings_beside_tables_are_found() -> None:
    outline = read_outline(f"# A\n\n{PRICES}\n## B\n\nTitle\n===\n")
    assert outline.paths == (("A",), ("A", "B"), ("Title",))
    assert [(table.start, len(table.rows)) for table in outline.tables] == [(5, 9)]


def test_tables_of_html_and_notebooks_repeat_their_header(tmp_path: Path) -> None:
    rows = "".join(f"<tr><td>no {n}<td>{n}</tr>" for n in range(9))
    (tmp_path / "a.html").write_text(f"<main><table><tr><th>item<th>euro</tr>{rows}</table></main>")
    cell = {"cell_type": "markdown", "metadata": {}, "source": PRICES}
    notebook = {"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (tmp_path / "b.ipynb").write_text(json.dumps(notebook))
    for document in read_documents(tmp_path):
        assert isinstance(document, Document)
        chunks = Chunker(TOKENIZER, replace(SPEC, max_length=80)).cut(document)
        assert len(chunks) > 2 and all(chunk.text.startswith("| item | euro |") for chunk in chunks), document.id
