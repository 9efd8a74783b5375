"""GIRCSE: embeddings from a language model that thinks before it embeds.

    from gircse_rag import Embedder

    embedder = Embedder.from_pretrained("smollm2-135m")
    vectors = embedder.embed_queries(["..."], instruction="Given a question, retrieve passages that answer it")

Importing the package imports neither torch nor transformers; the names below load on first use.
"""

from __future__ import annotations

__version__ = "0.1.0"

# Not from typing, whose import takes longer than all that `gircse` needs before it handles signals.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from gircse_rag.adaptation import Adapted, adapt
    from gircse_rag.embedder import Embedder
    from gircse_rag.errors import GircseError, GircseWarning
    from gircse_rag.prompts import INSTRUCTIONS
    from gircse_rag.result import EmbeddingResult
    from gircse_rag.spec import EmbeddingSpec

_MODULES = {
    "Adapted": "gircse_rag.adaptation",
    "adapt": "gircse_rag.adaptation",
    "Embedder": "gircse_rag.embedder",
    "EmbeddingResult": "gircse_rag.result",
    "EmbeddingSpec": "gircse_rag.spec",
    "GircseError": "gircse_rag.errors",
    "GircseWarning": "gircse_rag.errors",
    "INSTRUCTIONS": "gircse_rag.prompts",
}

__all__ = [
    "INSTRUCTIONS",
    "Adapted",
    "Embedder",
    "EmbeddingResult",
    "EmbeddingSpec",
    "GircseError",
    "GircseWarning",
    "adapt",
]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'gircse_rag' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
