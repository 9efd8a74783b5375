"""Documents: reading them from files and frameworks, and cutting them into chunks that fit the model.

    document     Document, and SkippedFile for what gave none
    readers/     files, folders, LangChain's and LlamaIndex's documents -> Document
    chunking     Document -> chunks of whole sections, paragraphs, sentences or definitions
    metadata     what a document's metadata may hold
    languages    the programming languages that are cut at their definitions
    nesting      how deeply source code is nested, so that deep code is not given to a slow parser

Nothing here knows Qdrant.
"""

from gircse_rag.documents.chunking import Chunk, Chunker
from gircse_rag.documents.document import Document, SkippedFile
from gircse_rag.documents.readers import read_documents

__all__ = ["Chunk", "Chunker", "Document", "SkippedFile", "read_documents"]
