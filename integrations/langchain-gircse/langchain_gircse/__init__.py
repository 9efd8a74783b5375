"""GIRCSE in LangChain: embeddings, and a retriever whose instruction is set when it is invoked.

    embeddings = GircseEmbeddings(model="smollm2-135m")
    retriever = GircseRetriever(vectorstore=InMemoryVectorStore(embeddings))
    retriever.invoke("a question", instruction="Given a question, retrieve passages that answer it")

The Qdrant store is in `langchain_gircse.qdrant`; it comes with pip install "langchain-gircse[qdrant]".
"""

from langchain_gircse.embeddings import GircseEmbeddings, GircseInvalidRequestError
from langchain_gircse.retriever import GircseRetriever

__all__ = ["GircseEmbeddings", "GircseInvalidRequestError", "GircseRetriever"]
