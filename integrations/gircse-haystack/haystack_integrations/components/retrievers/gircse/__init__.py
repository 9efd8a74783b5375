"""GIRCSE in Haystack: retrieval from Qdrant."""

from haystack_integrations.components.retrievers.gircse.retriever import (
    GircseQdrantEmbeddingRetriever,
    GircseQdrantHybridRetriever,
)

__all__ = ["GircseQdrantEmbeddingRetriever", "GircseQdrantHybridRetriever"]
