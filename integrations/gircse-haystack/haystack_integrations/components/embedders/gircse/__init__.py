"""GIRCSE in Haystack."""

from haystack_integrations.components.embedders.gircse.document_embedder import GircseDocumentEmbedder
from haystack_integrations.components.embedders.gircse.text_embedder import GircseTextEmbedder

__all__ = ["GircseDocumentEmbedder", "GircseTextEmbedder"]
