"""The collections of `gircse ingest` as a Haystack document store."""

from haystack_integrations.document_stores.gircse.document_store import GircseQdrantDocumentStore

__all__ = ["GircseQdrantDocumentStore"]
