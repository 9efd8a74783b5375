"""GIRCSE in LangChain: embeddings, and a retriever that takes an instruction per call.

    embeddings = GircseEmbeddings(model="smollm2-135m")
    retriever = GircseRetriever(vectorstore=InMemoryVectorStore(embeddings))
    retriever.invoke("a question", instruction="Given a question, retrieve passages that answer it")

The Qdrant store is in `langchain_gircse.qdrant` and needs pip install "langchain-gircse[qdrant]".
"""

from langchain_gircse.embeddings import GircseEmbeddings, GircseInvalidRequestError
from langchain_gircse.retriever import GircseRetriever

__all__ = ["GircseEmbeddings", "GircseInvalidRequestError", "GircseRetriever"]
