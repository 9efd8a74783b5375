"""GIRCSE in LlamaIndex: embeddings. The Qdrant store is in `llama_index.embeddings.gircse.qdrant`."""

from llama_index.embeddings.gircse.base import GircseEmbedding

__all__ = ["GircseEmbedding"]
