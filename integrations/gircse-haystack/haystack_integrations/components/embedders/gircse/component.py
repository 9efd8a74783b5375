"""Common base of the text embedder and the document embedder: settings, model loading, serialisation."""

from __future__ import annotations

import inspect
import threading
from typing import Any, Self
from weakref import WeakValueDictionary

from gircse_rag.embedder import Embedder
from gircse_rag.errors import GircseError
from gircse_rag.option_hints import explain_options
from gircse_rag.result import EmbeddingResult
from haystack import default_from_dict, default_to_dict
from haystack.utils import ComponentDevice

_embedders: WeakValueDictionary[tuple[Any, ...], Embedder] = WeakValueDictionary()
_lock = threading.Lock()


def _option_names(kind: type) -> list[str]:
    return [name for name in inspect.signature(kind.__init__).parameters if name not in ("self", "other")]  # type: ignore[misc]


def refuse_options(kind: type, other: dict[str, Any]) -> None:
    """Raise TypeError for options that a component does not have; says what replaces those of other embedders."""
    if other:
        hint = explain_options(other.keys(), _option_names(kind))
        raise TypeError(f"{kind.__name__}: {hint or f'unexpected keyword arguments {sorted(other)}'}")


class GircseComponent:
    """Loads the model on first use and shares it between components with the same settings."""

    def __init__(
        self,
        model: str,
        steps: int | None,
        backend: str | None,
        device: ComponentDevice | None,
        dtype: str,
        revision: str | None,
        dimensions: int | None,
    ) -> None:
        self.model = model
        self.steps = steps
        self.backend = backend
        self.device = device
        self.dtype = dtype
        self.revision = revision
        self.dimensions = dimensions
        self._embedder: Embedder | None = None

    @property
    def embedder(self) -> Embedder:
        """The embedder, loaded on first access.

        :raises ValueError: a setting is invalid, or the model cannot be loaded.
        """
        if self._embedder is None:
            device = "auto" if self.device is None else self.device.to_torch_str()
            key = (self.model, self.steps, self.backend, device, self.dtype, self.revision, self.dimensions)
            options: dict[str, Any] = {} if self.backend is None else {"backend": self.backend}
            with _lock:
                embedder = _embedders.get(key)
                if embedder is None:
                    try:
                        embedder = Embedder.from_pretrained(
                            self.model,
                            steps=self.steps,
                            device=device,
                            dtype=self.dtype,
                            revision=self.revision,
                            dimensions=self.dimensions,
                            **options,
                        )
                    except GircseError as error:
                        raise ValueError(str(error)) from error
                    _embedders[key] = embedder
            self._embedder = embedder
        return self._embedder

    def warm_up(self) -> None:
        """Loads the model.

        :raises ValueError: a setting is invalid, or the model cannot be loaded.
        """
        assert self.embedder

    def to_dict(self) -> dict[str, Any]:
        """Serializes the component."""
        names = _option_names(type(self))
        return default_to_dict(self, **{name: getattr(self, name) for name in names})  # type: ignore[no-any-return]

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Deserializes the component."""
        return default_from_dict(cls, data)  # type: ignore[no-any-return]

    def _meta(self, result: EmbeddingResult | None) -> dict[str, Any]:
        """Return the `meta` output: model, fingerprint and token usage."""
        tokens = 0 if result is None else int(result.prompt_tokens.sum())
        return {"model": self.model, "fingerprint": self.embedder.fingerprint, "usage": {"prompt_tokens": tokens}}

    def _get_telemetry_data(self) -> dict[str, Any]:
        return {"model": self.model}
