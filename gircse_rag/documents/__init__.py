"""Read documents from files and frameworks, and cut them into chunks that fit the model.

    document     Document, and SkippedFile for input that could not be read
    readers/     files, folders, LangChain and LlamaIndex documents -> Document
    chunking     Document -> chunks of whole sections, paragraphs, sentences or definitions
    outline      headings of Markdown
    front_matter fields of YAML above a Markdown text
    metadata     which metadata a document may have
    languages    programming languages that are cut at definitions
    nesting      how deeply source code is nested; deep code is too slow for the parser

Nothing here depends on Qdrant.
"""

from gircse_rag.documents.chunking import Chunk, Chunker
from gircse_rag.documents.document import Document, SkippedFile
from gircse_rag.documents.readers import read_documents

__all__ = ["Chunk", "Chunker", "Document", "SkippedFile", "read_documents"]
