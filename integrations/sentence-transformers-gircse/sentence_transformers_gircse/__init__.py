"""GIRCSE in Sentence Transformers.

    model = SentenceTransformer(modules=[GircseModule("smollm2-135m")])

`encode_query` adds an instruction, `encode_document` does not.
"""

from sentence_transformers_gircse.module import GircseModule

__all__ = ["GircseModule"]
