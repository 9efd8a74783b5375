"""What a run adapts to: documents, questions, how they are split, and the instructions they are asked with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from gircse_rag.adaptation.corpus import Corpus, Question, join_pairs
from gircse_rag.adaptation.pairs import Pairs, SkippedPair, read_pairs
from gircse_rag.adaptation.self_pairs import SelfPair, as_questions, make_pairs
from gircse_rag.adaptation.split import MIN_QUESTIONS, Split, split_questions
from gircse_rag.documents.readers import Readable
from gircse_rag.embedder import Embedder
from gircse_rag.errors import InputError, plural
from gircse_rag.spec import EmbeddingSpec


@dataclass(frozen=True)
class Inputs:
    """Documents and questions of a run.

    Attributes:
        corpus: the documents' chunks.
        questions: q questions with their answers.
        split: which of them train, choose and measure.
        spec: of the model to start from.
        instructions: wordings of questions without their own instruction, the main one first; at least one.
        skipped: documents and pairs that were left out, with the reason.
        digest: changes with all of the above and with the model.
        made: the pairs that the questions come from, if they were made from the documents.
    """

    corpus: Corpus
    questions: list[Question]
    split: Split
    spec: EmbeddingSpec
    instructions: tuple[str, ...]
    skipped: list[str]
    digest: str
    made: list[SelfPair] = field(default_factory=list)

    @classmethod
    def read(
        cls,
        documents: Iterable[Readable] | Readable,
        pairs: Pairs | None,
        embedder: Embedder,
        instructions: Sequence[str],
    ) -> Inputs:
        """Read documents and pairs, and split the questions. Without pairs, make them from the documents.

        Raises:
            InputError: no documents, no pairs that can be read, too few questions, or none that can be held out.
        """
        spec = embedder.spec
        corpus = Corpus.read(documents, embedder.tokenizer, spec)
        made: list[SelfPair] = []
        skipped: list[SkippedPair] = []
        if pairs is None:
            made = make_pairs(corpus)
            questions = as_questions(corpus, made)
        else:
            questions, skipped = join_pairs(corpus, read_pairs(pairs))
        try:
            split = split_questions(questions)
        except InputError as error:
            reason = f"; {len(skipped)} pairs were left out, first {skipped[0]}" if skipped else ""
            if pairs is None:
                reason = f"; they were made from {plural(len(corpus.chunks), 'chunk')}: add documents, or give pairs"
            raise InputError(f"{error}{reason}") from error
        own = {question.instruction for question in questions}
        shared = next(iter(own)) if len(own) == 1 else None
        chosen = tuple(dict.fromkeys(instructions)) or (shared or spec.default_instruction,)
        content = repr((embedder.fingerprint, corpus.documents, corpus.chunks, questions, chosen))
        digest = hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:32]
        left_out = [*corpus.skipped, *map(str, skipped)]
        return cls(corpus, questions, split, spec, chosen, left_out, digest, made)

    def keep(self, agreed: Sequence[bool]) -> Inputs:
        """Leave out the questions with which the current model does not agree.

        Raises:
            InputError: too few are left.
        """
        if sum(agreed) < MIN_QUESTIONS:
            raise InputError(
                f"the current model agrees with {sum(agreed)} of {len(agreed)} pairs made from the documents; "
                f"adapting needs at least {MIN_QUESTIONS}: add documents, or give pairs"
            )

        def kept(side: list[int]) -> list[int]:
            return [number for number in side if agreed[number]]

        split = self.split
        return replace(self, split=Split(kept(split.train), kept(split.validation), kept(split.held_out), split.by))

    @property
    def held_out(self) -> list[Question]:
        """The questions that the report scores."""
        return [self.questions[i] for i in self.split.held_out]

    def instruction_of(self, question: Question) -> str:
        """The instruction that a question is asked with."""
        return question.instruction or self.instructions[0]
