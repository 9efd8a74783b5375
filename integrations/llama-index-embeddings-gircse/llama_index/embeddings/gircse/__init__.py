"""GIRCSE in LlamaIndex."""

from llama_index.embeddings.gircse.base import GircseEmbedding

__all__ = ["GircseEmbedding"]
