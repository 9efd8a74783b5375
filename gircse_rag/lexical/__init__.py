"""Lexical search: the words of a text as a sparse vector, and its fusion with the dense ranking.

    bm25      text -> term ids and weights, equal to FastEmbed's `Qdrant/bm25`

Nothing here knows a store or a model.
"""

from gircse_rag.lexical.bm25 import DEFAULT_LANGUAGE, LANGUAGES, Bm25Encoder

__all__ = ["DEFAULT_LANGUAGE", "LANGUAGES", "Bm25Encoder"]
