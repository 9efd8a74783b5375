"""GIRCSE in Haystack: a document store on the collections of `gircse ingest`."""

from haystack_integrations.document_stores.gircse.document_store import GircseQdrantDocumentStore

__all__ = ["GircseQdrantDocumentStore"]
