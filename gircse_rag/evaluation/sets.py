"""What is scored: the five kinds of evaluation set, as texts and labels, before any vector exists.

A set never calls a model. It says which texts it needs, in which role and under which instruction (`blocks`),
so that every distinct text can be embedded once, anywhere, and scored later from arrays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from gircse_rag.prompts import Role


@dataclass(frozen=True)
class Block:
    """Texts that share a role and an instruction. Documents carry none (`instruction is None`)."""

    texts: tuple[str, ...]
    role: Role
    instruction: str | None


@dataclass(frozen=True)
class RetrievalSet:
    """Rank `document_texts` for each query; `qrels[query id][document id]` is the graded relevance.

    Documents without a word are left out of `document_ids` and counted in `empty_documents`: nobody can retrieve them,
    and a judgement that names one stays a miss. `symmetric` puts the instruction on the documents too.
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
            return {
                "queries": Block(self.query_texts, "symmetric", self.instruction),
                "documents": Block(self.document_texts, "symmetric", self.instruction),
            }
        return {
            "queries": Block(self.query_texts, "query", self.instruction),
            "documents": Block(self.document_texts, "document", None),
        }


@dataclass(frozen=True)
class PairSet:
    """Sentence pairs with a human score each.

    `binary`: the whole set's scores are 0 and 1, "same or not": average precision leads, of a sample as well.
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
        return {
            "first": Block(self.first, "symmetric", self.instruction),
            "second": Block(self.second, "symmetric", self.instruction),
        }


@dataclass(frozen=True)
class ProbeSet:
    """Classification: a logistic regression is fitted on the train texts' vectors and judged on the test texts'."""

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
        return {
            "train": Block(self.train_texts, "symmetric", self.instruction),
            "test": Block(self.test_texts, "symmetric", self.instruction),
        }


@dataclass(frozen=True)
class ClusterSet:
    """Texts with one label each; k-means is given the number of labels, never the labels."""

    task: ClassVar[str] = "clustering"
    main: ClassVar[str] = "v_measure"
    name: str
    instruction: str
    texts: tuple[str, ...]
    labels: tuple[str, ...]

    @property
    def blocks(self) -> dict[str, Block]:
        return {"texts": Block(self.texts, "symmetric", self.instruction)}


@dataclass(frozen=True)
class NestedContrastSet:
    """The same texts under two instructions, one asking for fine labels and one for the coarse labels above them.

    Labels nest (equal fine labels have equal coarse labels), so a good but deaf model ranks well for both. What is
    scored is therefore the *change* between the two instructions: see `scoring.nested_contrast`.
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
    """One query text, two instructions, and for each the text that it should bring nearer than the other's."""

    query: str
    instructions: tuple[str, str]
    answers: tuple[str, str]
    symmetric: tuple[bool, bool]


@dataclass(frozen=True)
class ChoiceContrastSet:
    """Forced choices: under either instruction its own answer must come before the other's."""

    task: ClassVar[str] = "contrast"
    main: ClassVar[str] = "followed"
    name: str
    choices: tuple[Choice, ...]

    @property
    def blocks(self) -> dict[str, Block]:
        """Per instruction its queries and, in the order own, other, the two candidates of each of them."""
        queries: dict[tuple[str, bool], list[str]] = {}
        candidates: dict[tuple[str, bool], list[str]] = {}
        for choice in self.choices:
            for side in (0, 1):
                key = (choice.instructions[side], choice.symmetric[side])
                queries.setdefault(key, []).append(choice.query)
                candidates.setdefault(key, []).extend((choice.answers[side], choice.answers[1 - side]))
        blocks: dict[str, Block] = {}
        for (instruction, symmetric), texts in queries.items():
            around = tuple(candidates[instruction, symmetric])
            blocks[f"queries: {instruction}"] = Block(tuple(texts), "symmetric" if symmetric else "query", instruction)
            blocks[f"candidates: {instruction}"] = (
                Block(around, "symmetric", instruction) if symmetric else Block(around, "document", None)
            )
        return blocks


EvalSet = RetrievalSet | PairSet | ProbeSet | ClusterSet | NestedContrastSet | ChoiceContrastSet
