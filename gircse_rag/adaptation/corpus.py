"""The chunks of the documents, and which of them answer each question."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from transformers import PreTrainedTokenizerBase

from gircse_rag.adaptation.pairs import Pair, SkippedPair
from gircse_rag.documents import Chunk, Chunker, Document, SkippedFile, read_documents
from gircse_rag.documents.readers import Readable
from gircse_rag.errors import InputError
from gircse_rag.spec import EmbeddingSpec
from gircse_rag.tokens import check_text

_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Question:
    """A question with all its answers.

    Attributes:
        text: as it was asked first.
        instruction: its own instruction, or None.
        documents: numbers of the documents that hold an answer.
        chunks: numbers of the chunks that may be the answer: all chunks of a document, or those of a passage.
        by_document: whether the pairs name documents, so that any chunk of one counts as found.
        answer: text to train with instead of the chunk, or None.
    """

    text: str
    instruction: str | None
    documents: frozenset[int]
    chunks: frozenset[int]
    by_document: bool
    answer: str | None = None


@dataclass(frozen=True)
class Corpus:
    """Documents, cut into chunks as `ingest` cuts them.

    Attributes:
        documents: ids, in order.
        chunks: all chunks' texts, document by document.
        owners: (n,) int64, number of each chunk's document.
        cut: per document, its chunks with headings and offsets.
        sources: the documents themselves.
        skipped: files and documents that could not be read or cut.
    """

    documents: list[str]
    chunks: list[str]
    owners: np.ndarray
    cut: list[list[Chunk]]
    sources: list[Document]
    skipped: list[str] = field(default_factory=list)

    @classmethod
    def read(
        cls, items: Iterable[Readable] | Readable, tokenizer: PreTrainedTokenizerBase, spec: EmbeddingSpec
    ) -> Corpus:
        """Read and cut documents. One that cannot be embedded is skipped, with the reason.

        Raises:
            InputError: a path does not exist, or there is no document.
        """
        chunker = Chunker(tokenizer, spec)
        sources: dict[str, Document] = {}
        cut: list[list[Chunk]] = []
        skipped: list[str] = []
        for item in read_documents(items):
            if isinstance(item, SkippedFile):
                skipped.append(str(item))
                continue
            try:
                if item.id in sources:
                    raise InputError("another document has the same id")
                check_text(item.text.replace("\f", "\n"))
                chunks = chunker.cut(item)
                if not chunks:
                    raise InputError("it has no text")
            except InputError as error:
                skipped.append(f"{item.id}: {error}")
                continue
            sources[item.id] = item
            cut.append(chunks)
        if not sources:
            reason = f"; the first problem: {skipped[0]}" if skipped else ""
            raise InputError(f"there is no document to adapt to{reason}")
        owners = np.repeat(np.arange(len(cut)), [len(chunks) for chunks in cut])
        texts = [chunk.text for chunks in cut for chunk in chunks]
        return cls(list(sources), texts, owners, cut, list(sources.values()), skipped)

    def members(self, document: int) -> range:
        """Numbers of the chunks of a document."""
        first, last = np.searchsorted(self.owners, (document, document + 1))
        return range(int(first), int(last))


def join_pairs(corpus: Corpus, pairs: Iterable[Pair | SkippedPair]) -> tuple[list[Question], list[SkippedPair]]:
    """Find each pair's answer among the chunks, and join the pairs of equal questions.

    Returns:
        The questions, and the pairs without an answer in the documents.
    """
    finder, skipped = _Finder(corpus), []
    found: dict[tuple[str, str | None], list[tuple[Pair, frozenset[int]]]] = {}
    for pair in pairs:
        if isinstance(pair, SkippedPair):
            skipped.append(pair)
            continue
        chunks = finder.find(pair)
        if isinstance(chunks, str):
            skipped.append(SkippedPair(pair.place, chunks))
        else:
            found.setdefault((normalise(pair.question), pair.instruction), []).append((pair, chunks))
    questions = []
    for (_, instruction), members in found.items():
        chunks = frozenset().union(*(chunks for _, chunks in members))
        documents = frozenset(int(corpus.owners[chunk]) for chunk in chunks)
        by_document = any(pair.document is not None for pair, _ in members)
        questions.append(Question(members[0][0].question, instruction, documents, chunks, by_document))
    return questions, skipped


def normalise(text: str) -> str:
    """The words of a text in lower case, joined by spaces."""
    return " ".join(_WORD.findall(text.casefold()))


class _Finder:
    """Finds the chunks of a pair's document or passage."""

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus
        self._numbers: dict[str, int | None] = {}
        for number, name in enumerate(corpus.documents):
            self._numbers[name] = number
        for number, name in enumerate(corpus.documents):  # a row's own id, such as 7 of "faq.csv#7", if it is unique
            if "#" in name:
                own = name.rpartition("#")[2]
                self._numbers[own] = None if own in self._numbers else number
        self._chunks = [normalise(text) for text in corpus.chunks]
        self._spaced = [f" {text} " for text in self._chunks]
        self._exact: dict[str, list[int]] = {}
        for number, text in enumerate(self._chunks):
            self._exact.setdefault(text, []).append(number)

    def find(self, pair: Pair) -> frozenset[int] | str:
        """The numbers of the chunks that answer the pair, or the reason why there is none."""
        if pair.document is not None:
            number = self._numbers.get(pair.document)
            if number is None:
                near = difflib.get_close_matches(pair.document, self._corpus.documents, n=3, cutoff=0.6)
                hint = f"; similar ids: {', '.join(near)}" if near else f"; an id here: {self._corpus.documents[0]}"
                return f"no document has the id {pair.document!r}{hint}"
            return frozenset(self._corpus.members(number))
        passage = normalise(pair.passage or "")
        if not passage:
            return "the passage has no word"
        if passage in self._exact:
            return frozenset(self._exact[passage])
        spaced = f" {passage} "
        found = [n for n, text in enumerate(self._spaced) if spaced in text or text in spaced]
        if not found:
            found = self._find_across(spaced)
        return frozenset(found) or f"the passage {(pair.passage or '')[:60]!r} is in no document"

    def _find_across(self, spaced: str) -> list[int]:
        """The chunks that share a passage whose words cross the end of a chunk."""
        for document in range(len(self._corpus.documents)):
            members = self._corpus.members(document)
            joined = " ".join(self._chunks[number] for number in members)
            at = f" {joined} ".find(spaced)
            if at < 0:
                continue
            found, start = [], 0
            for number in members:
                end = start + len(self._chunks[number])
                if start < at + len(spaced) - 2 and end > at:
                    found.append(number)
                start = end + 1
            return found
        return []
