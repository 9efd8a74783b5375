"""A deterministic embedder with the real one's face: vectors are sums of word hashes, and it counts what it embeds."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from gircse_rag.embedder import EmbeddingResult
from gircse_rag.errors import GircseError
from gircse_rag.spec import EmbeddingSpec
from gircse_rag.tokens import encode

POISON = "p0ison"


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, so that a test can count."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={symbol: number for number, symbol in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=made)


class StandIn:
    """Refuses a text that holds POISON, as a backend that fails on it would."""

    def __init__(self, dimension: int = 16, max_length: int = 64, **spec: object) -> None:
        self.tokenizer = byte_tokenizer()
        self.spec = replace(
            EmbeddingSpec(base_model="stand-in", base_hash="b", tokenizer_hash="t", dimension=dimension),
            max_length=max_length,
            query_template="{instruction}?{text}",
            default_instruction="answer",
            **spec,  # type: ignore[arg-type]
        )
        self.embedded: list[str] = []
        self.batches: list[int] = []

    @property
    def fingerprint(self) -> str:
        return self.spec.fingerprint

    @property
    def dimension(self) -> int:
        return self.spec.dimension

    def embed(
        self,
        texts: Sequence[str],
        role: str = "query",
        instruction: str | None = None,
        *,
        steps: int | None = None,
        on_error: str = "raise",
    ) -> EmbeddingResult:
        prompts = [
            encode(self.tokenizer, self.spec, text, role=role, instruction=instruction, index=index)  # type: ignore[arg-type]
            for index, text in enumerate(texts)
        ]
        errors: dict[int, GircseError] = {}
        vectors = np.full((len(texts), self.dimension), np.nan, dtype=np.float32)
        for index, text in enumerate(texts):
            if POISON in text:
                errors[index] = GircseError("the backend broke", index=index)
            else:
                vectors[index] = self.vector(text)
        if errors and on_error == "raise":
            raise errors[min(errors)]
        if role == "document":
            self.embedded += texts
            self.batches.append(len(texts))
        return EmbeddingResult(
            vectors=vectors,
            trajectory=None,
            steps=np.full(len(texts), steps or self.spec.document_steps),
            prompt_tokens=np.array([len(prompt.token_ids) for prompt in prompts]),
            truncated=np.array([prompt.truncated for prompt in prompts]),
            soft_tokens=None,
            errors=errors,
        )

    def vector(self, text: str) -> NDArray[np.float32]:
        """Unit length; near for texts that share words."""
        words = [
            np.frombuffer(hashlib.shake_256(word.encode()).digest(self.dimension), np.int8) for word in text.split()
        ]
        total = np.sum([word.astype(np.float64) for word in words], axis=0)
        return (total / np.linalg.norm(total)).astype(np.float32)
