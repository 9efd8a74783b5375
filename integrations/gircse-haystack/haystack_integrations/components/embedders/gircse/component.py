"""What the text embedder and the document embedder are alike in: their settings, and the model behind them."""

from __future__ import annotations

import inspect
import threading
from typing import Any, Self
from weakref import WeakValueDictionary

from gircse_rag.embedder import Embedder, EmbeddingResult
from gircse_rag.errors import GircseError
from haystack import default_from_dict, default_to_dict
from haystack.utils import ComponentDevice

_loaded: WeakValueDictionary[tuple[Any, ...], Embedder] = WeakValueDictionary()
_lock = threading.Lock()


class GircseComponent:
    """Loads the model when it is first needed, once for all components with the same settings."""

    def __init__(
        self, model: str, steps: int | None, backend: str | None, device: ComponentDevice | None, dtype: str
    ) -> None:
        self.model = model
        self.steps = steps
        self.backend = backend
        self.device = device
        self.dtype = dtype
        self._embedder: Embedder | None = None

    @property
    def embedder(self) -> Embedder:
        """The model.

        :raises ValueError: a setting is refused, or the model cannot be loaded; says why.
        """
        if self._embedder is None:
            where = "auto" if self.device is None else self.device.to_torch_str()
            key = (self.model, self.steps, self.backend, where, self.dtype)
            chosen: dict[str, Any] = {} if self.backend is None else {"backend": self.backend}
            with _lock:
                found = _loaded.get(key)
                if found is None:
                    try:
                        found = Embedder.from_pretrained(
                            self.model, steps=self.steps, device=where, dtype=self.dtype, **chosen
                        )
                    except GircseError as error:
                        raise ValueError(str(error)) from error
                    _loaded[key] = found
            self._embedder = found
        return self._embedder

    def warm_up(self) -> None:
        """Loads the model.

        :raises ValueError: a setting is refused, or the model cannot be loaded.
        """
        assert self.embedder

    def to_dict(self) -> dict[str, Any]:
        """Serializes the component."""
        names = list(inspect.signature(type(self).__init__).parameters)[1:]
        return default_to_dict(self, **{name: getattr(self, name) for name in names})  # type: ignore[no-any-return]

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Deserializes the component."""
        return default_from_dict(cls, data)  # type: ignore[no-any-return]

    def _meta(self, result: EmbeddingResult | None) -> dict[str, Any]:
        """What a component reports beside the embeddings."""
        tokens = 0 if result is None else int(result.prompt_tokens.sum())
        return {"model": self.model, "fingerprint": self.embedder.fingerprint, "usage": {"prompt_tokens": tokens}}

    def _get_telemetry_data(self) -> dict[str, Any]:
        return {"model": self.model}
