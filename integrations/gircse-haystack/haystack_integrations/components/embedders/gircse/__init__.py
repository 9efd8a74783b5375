"""GIRCSE in Haystack: embedders for documents and queries."""

from haystack_integrations.components.embedders.gircse.document_embedder import GircseDocumentEmbedder
from haystack_integrations.components.embedders.gircse.text_embedder import GircseTextEmbedder

__all__ = ["GircseDocumentEmbedder", "GircseTextEmbedder"]
