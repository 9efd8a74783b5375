"""Old place of `gircse_rag.documents.chunking`; importing it warns (DeprecationWarning)."""

import warnings

from gircse_rag.documents.chunking import Chunk as Chunk
from gircse_rag.documents.chunking import Chunker as Chunker

warnings.warn("gircse_rag.qdrant.chunking moved to gircse_rag.documents", DeprecationWarning, stacklevel=2)
