"""Embedders by their settings: the text embedder and the document embedder of a pipeline share one model."""

from __future__ import annotations

import threading
from typing import Any
from weakref import WeakValueDictionary

from gircse_rag.embedder import Embedder, EmbeddingResult
from gircse_rag.errors import GircseError
from haystack.utils import ComponentDevice

_loaded: WeakValueDictionary[tuple[Any, ...], Embedder] = WeakValueDictionary()
_lock = threading.Lock()


def load(model: str, steps: int | None, backend: str | None, device: ComponentDevice | None, dtype: str) -> Embedder:
    """The embedder with these settings, loaded if no component has it.

    Raises:
        ValueError: a setting is refused, or the model cannot be loaded; says why.
    """
    where = "auto" if device is None else device.to_torch_str()
    key = (model, steps, backend, where, dtype)
    chosen: dict[str, Any] = {} if backend is None else {"backend": backend}
    with _lock:
        embedder = _loaded.get(key)
        if embedder is None:
            try:
                embedder = Embedder.from_pretrained(model, steps=steps, device=where, dtype=dtype, **chosen)
            except GircseError as error:
                raise ValueError(str(error)) from error
            _loaded[key] = embedder
    return embedder


def meta(model: str, embedder: Embedder, result: EmbeddingResult | None) -> dict[str, Any]:
    """What a component reports beside the embeddings."""
    tokens = 0 if result is None else int(result.prompt_tokens.sum())
    return {"model": model, "fingerprint": embedder.fingerprint, "usage": {"prompt_tokens": tokens}}
