"""Pairs in every accepted form, and rows that are none."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gircse_rag.adaptation.pairs import Pair, SkippedPair, read_pairs
from gircse_rag.errors import InputError

DATASET: dict[str, Any] = {
    "queries": {"q1": "What is a heap?", "q2": "What is gzip?", "q3": "Nothing?"},
    "corpus": {"n1": "A heap is a tree.", "n2": "gzip compresses.", "n3": "gzip expands."},
    "relevant_docs": {"q1": ["n1"], "q2": ["n2", "n3"], "q3": ["lost"]},
}


@dataclass
class Dataset:
    """What LlamaIndex's EmbeddingQAFinetuneDataset looks like."""

    queries: dict[str, str]
    corpus: dict[str, str]
    relevant_docs: dict[str, list[str]]


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.csv", "question,document,instruction\nWhy?,a.md,Find it\n"),
        ("p.tsv", "query\tdoc_id\tinstruction\nWhy?\ta.md\tFind it\n"),
        ("p.jsonl", '{"user_input": "Why?", "source": "a.md", "instruction": "Find it"}\n'),
        ("p.json", '[{"question": "Why?", "document_id": "a.md", "instruction": "Find it"}]'),
    ],
)
def test_files_name_documents(tmp_path: Path, name: str, text: str) -> None:
    (pair,) = read_pairs(write(tmp_path / name, text))
    assert isinstance(pair, Pair)
    assert (pair.question, pair.document, pair.passage, pair.instruction) == ("Why?", "a.md", None, "Find it")


@pytest.mark.parametrize(
    "row",
    [
        {"question": "Why?", "passage": "So."},
        {"query": "Why?", "answer": "yes", "context": "So."},  # LangChain
        {"user_input": "Why?", "reference_contexts": ["So."]},  # Ragas
        {"query": "Why?", "positive": "So.", "negative": "No."},
    ],
)
def test_rows_of_other_tools_quote_passages(row: dict[str, Any]) -> None:
    (pair,) = read_pairs([row])
    assert isinstance(pair, Pair) and (pair.question, pair.passage) == ("Why?", "So.")


@pytest.mark.parametrize("form", ["object", "file"])
def test_a_llama_index_dataset(tmp_path: Path, form: str) -> None:
    source = Dataset(**DATASET) if form == "object" else write(tmp_path / "set.json", json.dumps(DATASET))
    found = list(read_pairs(source))
    pairs = [(pair.question, pair.passage) for pair in found if isinstance(pair, Pair)]
    assert pairs == [
        ("What is a heap?", "A heap is a tree."),
        ("What is gzip?", "gzip compresses."),
        ("What is gzip?", "gzip expands."),
    ]
    (skipped,) = (pair for pair in found if isinstance(pair, SkippedPair))
    assert "q3" in skipped.place and "has no answer" in skipped.reason


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"question": "Why?"}, "has no answer; add a field document"),
        ({"question": " ", "document": "a"}, "empty or white space"),
        ({"document": "a"}, "is not a string"),
        ({"question": "Why?", "passage": "So.\0"}, "NUL"),
        ("Why?", "not a row"),
    ],
)
def test_a_bad_row_is_named_and_the_rest_goes_on(row: Any, reason: str) -> None:
    bad, good = read_pairs([row, {"question": "Why?", "document": "a"}])
    assert isinstance(bad, SkippedPair) and isinstance(good, Pair)
    assert bad.place == "pair 1" and reason in bad.reason


def test_a_bad_line_of_a_file_keeps_its_number(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", '{"question": "Why?", "document": "a"}\nnot JSON\n')
    good, bad = read_pairs(path)
    assert isinstance(good, Pair) and isinstance(bad, SkippedPair) and bad.place == "line 2"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.csv", "Q,A\nWhy?,So.\n", "no row of .* has a question"),
        ("p.txt", "Why?", "pairs are read from .csv"),
        ("p.json", '{"questions": []}', "neither a list of rows nor a LlamaIndex dataset"),
        ("p.json", "{", "cannot be read as JSON"),
    ],
)
def test_a_file_without_pairs_is_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        list(read_pairs(write(tmp_path / name, text)))
    with pytest.raises(InputError, match="not a file"):
        list(read_pairs(tmp_path / "missing.csv"))
    with pytest.raises(InputError, match="pairs is a int"):
        list(read_pairs(3))
