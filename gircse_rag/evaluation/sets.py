"""The kinds of evaluation set, as texts and labels without vectors.

A set never calls a model. Its `blocks` list the texts it needs with their role and instruction, so every distinct text
can be embedded once, on any machine, and scored later from arrays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from gircse_rag.prompts import Role


@dataclass(frozen=True)
class Block:
    """Texts with the same role and instruction. Documents have no instruction (None)."""

    texts: tuple[str, ...]
    role: Role
    instruction: str | None


def _symmetric(instruction: str, **texts: tuple[str, ...]) -> dict[str, Block]:
    return {name: Block(part, "symmetric", instruction) for name, part in texts.items()}


@dataclass(frozen=True)
class RetrievalSet:
    """Rank `document_texts` for each query; `qrels[query id][document id]` is the graded relevance.

    `document_ids` lacks the empty documents, counted in `empty_documents`. A judgement of one counts as a miss.
    `symmetric` applies the instruction to the documents too.
    """

    task: ClassVar[str] = "retrieval"
    main: ClassVar[str] = "ndcg@10"
    name: str
    instruction: str
    query_ids: tuple[str, ...]
    query_texts: tuple[str, ...]
    document_ids: tuple[str, ...]
    document_texts: tuple[str, ...]
    qrels: Mapping[str, Mapping[str, int]]
    empty_documents: int = 0
    symmetric: bool = False

    @property
    def blocks(self) -> dict[str, Block]:
        if self.symmetric:
            return _symmetric(self.instruction, queries=self.query_texts, documents=self.document_texts)
        return {
            "queries": Block(self.query_texts, "query", self.instruction),
            "documents": Block(self.document_texts, "document", None),
        }


@dataclass(frozen=True)
class PairSet:
    """Sentence pairs, each with a human score.

    `binary`: all scores of the full set are 0 or 1, so the main metric is average precision, also for a sample.
    """

    task: ClassVar[str] = "sts"
    name: str
    instruction: str
    first: tuple[str, ...]
    second: tuple[str, ...]
    scores: tuple[float, ...]
    binary: bool

    @property
    def main(self) -> str:
        return "average_precision" if self.binary else "spearman"

    @property
    def blocks(self) -> dict[str, Block]:
        return _symmetric(self.instruction, first=self.first, second=self.second)


@dataclass(frozen=True)
class ProbeSet:
    """Classification: a logistic regression is fitted on vectors of the train texts and scored on the test texts."""

    task: ClassVar[str] = "classification"
    main: ClassVar[str] = "accuracy"
    name: str
    instruction: str
    train_texts: tuple[str, ...]
    train_labels: tuple[str, ...]
    test_texts: tuple[str, ...]
    test_labels: tuple[str, ...]

    @property
    def blocks(self) -> dict[str, Block]:
        return _symmetric(self.instruction, train=self.train_texts, test=self.test_texts)


@dataclass(frozen=True)
class ClusterSet:
    """Texts with one label each. K-means gets the number of labels, not the labels."""

    task: ClassVar[str] = "clustering"
    main: ClassVar[str] = "v_measure"
    name: str
    instruction: str
    texts: tuple[str, ...]
    labels: tuple[str, ...]

    @property
    def blocks(self) -> dict[str, Block]:
        return _symmetric(self.instruction, texts=self.texts)


@dataclass(frozen=True)
class NestedContrastSet:
    """The same texts under two instructions: one asks for fine labels, the other for coarse labels above them.

    Labels nest (equal fine labels imply equal coarse labels), so a good model that ignores instructions ranks well for
    both. Scores therefore measure the *change* between the two instructions: see `scoring.nested_contrast`.
    """

    task: ClassVar[str] = "contrast"
    main: ClassVar[str] = "followed"
    name: str
    fine_instruction: str
    coarse_instruction: str
    texts: tuple[str, ...]
    fine_labels: tuple[str, ...]
    coarse_labels: tuple[str, ...]

    @property
    def blocks(self) -> dict[str, Block]:
        return {
            "fine": Block(self.texts, "symmetric", self.fine_instruction),
            "coarse": Block(self.texts, "symmetric", self.coarse_instruction),
        }


@dataclass(frozen=True)
class Choice:
    """One query text with two instructions, and the answer that each of them should bring nearer."""

    query: str
    instructions: tuple[str, str]
    answers: tuple[str, str]
    symmetric: tuple[bool, bool]


@dataclass(frozen=True)
class ChoiceContrastSet:
    """Forced choices: under each instruction, its own answer must be nearer than the other's."""

    task: ClassVar[str] = "contrast"
    main: ClassVar[str] = "followed"
    name: str
    choices: tuple[Choice, ...]

    @property
    def blocks(self) -> dict[str, Block]:
        """Per instruction: its queries, and two candidates per query in the order own, other."""
        queries: dict[tuple[str, bool], list[str]] = {}
        candidates: dict[tuple[str, bool], list[str]] = {}
        for choice in self.choices:
            for side in (0, 1):
                key = (choice.instructions[side], choice.symmetric[side])
                queries.setdefault(key, []).append(choice.query)
                candidates.setdefault(key, []).extend((choice.answers[side], choice.answers[1 - side]))
        blocks: dict[str, Block] = {}
        for (instruction, symmetric), texts in queries.items():
            pairs = tuple(candidates[instruction, symmetric])
            blocks[f"queries: {instruction}"] = Block(tuple(texts), "symmetric" if symmetric else "query", instruction)
            blocks[f"candidates: {instruction}"] = (
                Block(pairs, "symmetric", instruction) if symmetric else Block(pairs, "document", None)
            )
        return blocks


EvalSet = RetrievalSet | PairSet | ProbeSet | ClusterSet | NestedContrastSet | ChoiceContrastSet
