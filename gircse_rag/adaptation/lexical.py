"""BM25 over the chunks, by `bm25s`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gircse_rag.errors import require


class Lexical:
    """BM25 scores of questions for chunks.

    Args:
        chunks: n texts.

    Raises:
        MissingExtraError: `bm25s` is not installed.
    """

    def __init__(self, chunks: Sequence[str]) -> None:
        self._bm25s = require("bm25s", "adapt")
        tokens = self._tokenize(chunks)
        self._count, self._index = len(chunks), None
        if any(tokens):
            self._index = self._bm25s.BM25(method="lucene")
            self._index.index(tokens, show_progress=False)

    def scores(self, question: str) -> np.ndarray:
        """Scores of all chunks, (n,) float32; 0 for a chunk that shares no word with the question."""
        known = {} if self._index is None else self._index.vocab_dict
        tokens = [token for token in self._tokenize([question])[0] if token in known]
        if self._index is None or not tokens:
            return np.zeros(self._count, dtype=np.float32)
        return np.asarray(self._index.get_scores(tokens), dtype=np.float32)

    def _tokenize(self, texts: Sequence[str]) -> list[list[str]]:
        tokens: list[list[str]] = self._bm25s.tokenize(
            list(texts), stopwords="en", return_ids=False, show_progress=False
        )
        return tokens
