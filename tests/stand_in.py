"""A real Embedder without a model: its vectors are sums of word hashes, and it records what it embeds."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from gircse_rag import Embedder
from gircse_rag.backend import Backend, Refinement, Request
from gircse_rag.errors import GircseError
from gircse_rag.spec import EmbeddingSpec

POISON = "p0ison"
SEPARATOR = "»"
"""Separates a query's instruction from its text; no test text contains it."""

_SYMBOLS = sorted(pre_tokenizers.ByteLevel.alphabet())
_DECODER = decoders.ByteLevel()


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token per byte, so that tests can count tokens."""
    tokenizer = Tokenizer(models.BPE(vocab={symbol: number for number, symbol in enumerate(_SYMBOLS)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def decode(token_ids: Iterable[int]) -> str:
    """Decode token ids of `byte_tokenizer` to text."""
    return _DECODER.decode([_SYMBOLS[token] for token in token_ids])


class Query(NamedTuple):
    """A query as the backend received it."""

    text: str
    instruction: str
    steps: int


class WordHashBackend:
    """Gives the sum of a text's word hashes after every step. A text that contains POISON fails.

    Attributes:
        embedded: texts of all refined documents.
        batches: documents per call of `refine`; a call without documents is not counted.
        queries: all refined queries.
    """

    def __init__(self, dimension: int) -> None:
        self.dimension = dimension
        self.embedded: list[str] = []
        self.batches: list[int] = []
        self.queries: list[Query] = []

    def refine(self, requests: Iterable[Request]) -> Iterator[tuple[int, Refinement | GircseError]]:
        documents = 0
        for position, request in enumerate(requests):
            instruction, separator, text = decode(request.token_ids).rpartition(SEPARATOR)
            if separator:
                self.queries.append(Query(text, instruction, request.steps))
            else:
                documents += 1
                self.embedded.append(text)
            yield position, self._make_refinement(text, request.steps)
        if documents:
            self.batches.append(documents)

    def _make_refinement(self, text: str, steps: int) -> Refinement | GircseError:
        return GircseError("the backend broke") if POISON in text else Refinement(self.trajectory(text, steps))

    def trajectory(self, text: str, steps: int) -> NDArray[np.float32]:
        """(steps, d): the same vector after every step."""
        return np.tile(self.vector(text), (steps, 1))

    def vector(self, text: str) -> NDArray[np.float32]:
        """(d,) float32 of unit length, similar for texts that share words."""
        words = [
            np.frombuffer(hashlib.shake_256(word.encode()).digest(self.dimension), np.int8) for word in text.split()
        ]
        total = np.sum([word.astype(np.float64) for word in words], axis=0)
        return (total / np.linalg.norm(total)).astype(np.float32)

    def close(self) -> None:
        pass


class WrappedBackend:
    """Delegates to another backend; subclasses extend `refine`."""

    def __init__(self, inner: Backend) -> None:
        self._inner = inner

    @property
    def dimension(self) -> int:
        return self._inner.dimension

    def refine(self, requests: Iterable[Request]) -> Iterator[tuple[int, Refinement | GircseError]]:
        return self._inner.refine(requests)

    def close(self) -> None:
        self._inner.close()


class StandIn(Embedder):
    """An Embedder over a WordHashBackend.

    Args:
        words: its backend; by default a new WordHashBackend of `dimension`.
        spec: fields of the EmbeddingSpec.
    """

    def __init__(
        self, dimension: int = 16, max_length: int = 64, *, words: WordHashBackend | None = None, **spec: Any
    ) -> None:
        fields: dict[str, Any] = {"base_model": "stand-in", "base_hash": "b", "tokenizer_hash": "t", **spec}
        self.words = words or WordHashBackend(dimension)
        super().__init__(
            self.words,
            byte_tokenizer(),
            EmbeddingSpec(
                dimension=self.words.dimension,
                max_length=max_length,
                query_template=f"{{instruction}}{SEPARATOR}{{text}}",
                default_instruction="answer",
                **fields,
            ),
        )

    @property
    def embedded(self) -> list[str]:
        return self.words.embedded

    @property
    def batches(self) -> list[int]:
        return self.words.batches

    def vector(self, text: str) -> NDArray[np.float32]:
        """The vector that `embed` gives for the text, whatever the instruction."""
        return self.words.vector(text)
