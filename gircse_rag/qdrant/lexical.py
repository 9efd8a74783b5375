"""The lexical vector of a collection: BM25 as a sparse vector beside the dense one.

    collection.sparse_vectors   {"bm25": IDF modifier}
    collection.metadata         {"gircse": {..., "lexical": {"model": "Qdrant/bm25", "language": "english", ...}}}
    point.vector                {"gircse": [d floats], "bm25": {term id: weight}}; no "bm25" if its text has no term

A collection that an earlier version made has none; `add_lexical` adds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from qdrant_client import QdrantClient, models

from gircse_rag.errors import InputError, StoreError
from gircse_rag.lexical import DEFAULT_LANGUAGE, Bm25Encoder
from gircse_rag.qdrant.stores import warn_once

LEXICAL = "bm25"
"""The name of the sparse vector: `sparse_vector_name=` for LangChain and LlamaIndex."""
_SETTINGS = "lexical"

Mode = Literal["hybrid", "dense", "lexical"]
MODES: tuple[Mode, ...] = get_args(Mode)


def sparse_params() -> dict[str, models.SparseVectorParams]:
    """The configuration of a new collection's lexical vector."""
    return {LEXICAL: models.SparseVectorParams(modifier=models.Modifier.IDF)}


def lexical_metadata(language: str | None) -> dict[str, Any]:
    """What the collection's metadata says about its lexical vector.

    Raises:
        InputError: the language has no stemmer.
    """
    return {_SETTINGS: Bm25Encoder(language or DEFAULT_LANGUAGE).settings}


def encoder_of(name: str, config: models.CollectionConfig, stamp: Mapping[str, Any]) -> Bm25Encoder | None:
    """The encoder of a collection's lexical vector, or None if the collection has none.

    Args:
        stamp: what gircse wrote into the collection's metadata.

    Raises:
        StoreError: the vector was made with settings that this version does not know.
    """
    settings = stamp.get(_SETTINGS)
    if settings is None or LEXICAL not in (config.params.sparse_vectors or {}):
        return None
    try:
        encoder = Bm25Encoder(settings["language"])
        if encoder.settings == settings:
            return encoder
    except (InputError, KeyError, TypeError):
        pass
    raise StoreError(
        f"collection {name!r} has a lexical vector made with other settings ({settings!r}): another version of "
        "gircse-rag made it; use that version, or ingest into another collection"
    )


def check_language(name: str, language: str | None, encoder: Bm25Encoder | None) -> None:
    """Check that a collection's lexical vector has the language that the caller asks for (None: any).

    Raises:
        InputError: it has another language, or the collection has no lexical vector.
    """
    if language is None or (encoder is not None and encoder.language == language):
        return
    if encoder is None:
        raise InputError(
            f"collection {name!r} has no lexical vector, so language={language!r} has no effect; leave it out, or run "
            f"gircse migrate {name} --add-lexical"
        )
    raise InputError(
        f"collection {name!r} has a lexical vector in {encoder.language}, not in {language}; leave the language out, "
        "or use another collection name"
    )


def to_sparse(weights: Mapping[int, float]) -> models.SparseVector:
    return models.SparseVector(indices=list(weights), values=list(weights.values()))


def choose_mode(mode: Mode | None, encoder: Bm25Encoder | None, client: QdrantClient, collection: str) -> Mode:
    """The mode of a search: what the caller asks for, else hybrid if the collection has a lexical vector.

    Warns once per client and collection if the caller does not choose and the collection has none (GircseWarning).

    Raises:
        InputError: there is no such mode.
        StoreError: the mode needs a lexical vector and the collection has none.
    """
    if mode is not None and mode not in MODES:
        raise InputError(f"mode must be {', '.join(MODES[:-1])} or {MODES[-1]}, not {mode!r}")
    if encoder is not None or mode == "dense":
        return mode or "hybrid"
    reason = f"collection {collection!r} has no lexical vector, because an earlier version of gircse-rag made it"
    advice = f"gircse migrate {collection} --add-lexical adds it without embedding anything again"
    if mode is not None:
        raise StoreError(f"{reason}; {advice}, or search with mode='dense'")
    warn_once(client, f"lexical {collection}", f"{reason}, so it is searched by its dense vector only; {advice}")
    return "dense"
