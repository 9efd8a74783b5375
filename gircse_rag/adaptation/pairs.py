"""Read pairs of a question and its answer: from CSV, JSONL, Parquet and JSON files, and from evaluation sets.

A row names its answer by a document's id, or quotes the passage. Fields are found by the names that other tools use:

    question      question | query | user_input
    document id   document | document_id | doc_id | source
    passage       passage | context | positive | contexts | reference_contexts   (a text or a list of texts)
    instruction   instruction                                                    (optional)

A LlamaIndex question-context dataset ({"queries", "corpus", "relevant_docs"}) is read as an object or as its JSON file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from gircse_rag.documents import Document, SkippedFile, read_documents
from gircse_rag.errors import InputError
from gircse_rag.tokens import check_text, read_instruction

QUESTION = ("question", "query", "user_input")
DOCUMENT = ("document", "document_id", "doc_id", "source")
PASSAGE = ("passage", "context", "positive", "contexts", "reference_contexts")
_DATASET = ("queries", "corpus", "relevant_docs")
_ROW_FILES = (".csv", ".tsv", ".jsonl", ".parquet")


@dataclass(frozen=True)
class Pair:
    """A question and its answer, which is a document's id or a passage.

    Attributes:
        place: where the pair was read, for messages.
        question: as a user asks it.
        document: id of the document that answers it, or None.
        passage: text that answers it, or None.
        instruction: the question's own instruction, or None.
    """

    place: str
    question: str
    document: str | None = None
    passage: str | None = None
    instruction: str | None = None


@dataclass(frozen=True)
class SkippedPair:
    """A row that is no pair, with the reason."""

    place: str
    reason: str

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


Pairs: TypeAlias = str | os.PathLike[str] | Iterable[Mapping[str, Any]] | Any
"""A file, rows as mappings, or a LlamaIndex question-context dataset."""


def read_pairs(pairs: Pairs) -> Iterator[Pair | SkippedPair]:
    """Read pairs, one row at a time. A row with several passages gives several pairs.

    Raises:
        InputError: the file does not exist or cannot be read at all, or no column holds the question.
    """
    if isinstance(pairs, str | os.PathLike):
        path = Path(pairs)
        if not path.is_file():
            raise InputError(f"{path} is not a file; give a file of pairs, such as questions.csv")
        yield from _read_json(path) if path.suffix.lower() == ".json" else _read_rows(path)
    elif all(hasattr(pairs, name) for name in _DATASET):
        yield from _read_dataset([getattr(pairs, name) for name in _DATASET], "the dataset")
    elif isinstance(pairs, Mapping) or not isinstance(pairs, Iterable):
        raise InputError(f"pairs is a {type(pairs).__name__}; give a file, a list of rows, or a LlamaIndex dataset")
    else:
        for number, row in enumerate(pairs, start=1):
            yield from _read_row(row, f"pair {number}")


def _read_rows(path: Path) -> Iterator[Pair | SkippedPair]:
    """Read a table with the readers of documents: the question is the text, all other columns are metadata."""
    if path.suffix.lower() not in _ROW_FILES:
        raise InputError(f"{path}: pairs are read from {', '.join((*_ROW_FILES, '.json'))} files")
    attempts = {field: list(read_documents([path], text_field=field)) for field in QUESTION}
    field = max(QUESTION, key=lambda name: sum(isinstance(row, Document) for row in attempts[name]))
    rows = attempts[field]
    if not any(isinstance(row, Document) for row in rows):
        first = next((str(row) for row in attempts[QUESTION[0]]), "the file is empty")
        raise InputError(f"no row of {path} has a question (field {', '.join(QUESTION)}): {first}")
    for row in rows:
        if isinstance(row, SkippedFile):
            yield SkippedPair(f"line {row.line}" if row.line else row.path, row.reason)
        else:
            yield from _read_row({**row.metadata, "question": row.text}, row.id)


def _read_json(path: Path) -> Iterator[Pair | SkippedPair]:
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from error
    if isinstance(value, list):
        for number, row in enumerate(value, start=1):
            yield from _read_row(row, f"{path.name}, row {number}")
    elif isinstance(value, dict) and all(isinstance(value.get(name), dict) for name in _DATASET):
        yield from _read_dataset([value[name] for name in _DATASET], path.name)
    else:
        raise InputError(
            f"{path} holds neither a list of rows nor a LlamaIndex dataset with queries, corpus and relevant_docs"
        )


def _read_dataset(parts: list[Mapping[str, Any]], name: str) -> Iterator[Pair | SkippedPair]:
    queries, corpus, relevant = parts
    for key, question in queries.items():
        place = f"{name}, query {key}"
        found = [corpus[document] for document in relevant.get(key) or () if document in corpus]
        yield from _read_row({"question": question, "passage": found}, place)


def _read_row(row: Any, place: str) -> Iterator[Pair | SkippedPair]:
    if isinstance(row, Pair):
        yield row
        return
    if not isinstance(row, Mapping):
        yield SkippedPair(place, f"a {type(row).__name__}, not a row with a question and its answer")
        return
    question, document, passage = (_first(row, names) for names in (QUESTION, DOCUMENT, PASSAGE))
    instruction = row.get("instruction") or None
    passages = list(passage) if isinstance(passage, Sequence) and not isinstance(passage, str) else [passage]
    passages = [text for text in passages if text]
    try:
        check_text(question)
        for text in passages:
            check_text(text)
        instruction = None if instruction is None else read_instruction(instruction)
    except InputError as error:
        yield SkippedPair(place, str(error).replace("the text", "the question or passage"))
        return
    if document is not None and not isinstance(document, bool):
        yield Pair(place, question, document=str(document), instruction=instruction)
    elif passages:
        for text in passages:
            yield Pair(place, question, passage=text, instruction=instruction)
    else:
        names = f"{DOCUMENT[0]} (a document's id) or {PASSAGE[0]} (a text)"
        yield SkippedPair(place, f"the question {question[:60]!r} has no answer; add a field {names}")


def _first(row: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """The value of the first of `names` that the row fills."""
    return next((row[name] for name in names if row.get(name) not in (None, "", [])), None)
