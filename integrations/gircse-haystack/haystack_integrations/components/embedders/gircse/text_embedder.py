"""GircseTextEmbedder: queries."""

from __future__ import annotations

import asyncio
from typing import Any

from gircse_rag.embedder import Embedder
from gircse_rag.tokens import check_text
from haystack import component, default_from_dict, default_to_dict
from haystack.utils import ComponentDevice

from haystack_integrations.components.embedders.gircse.shared import load, meta


@component
class GircseTextEmbedder:
    """Embeds a query with a GIRCSE checkpoint, rendered with an instruction.

    ```python
    from haystack_integrations.components.embedders.gircse import GircseTextEmbedder

    embedder = GircseTextEmbedder(query_instruction="Given a question, retrieve passages that answer it")
    embedding = embedder.run("how do I read a zip file?")["embedding"]
    ```
    """

    def __init__(
        self,
        model: str = "smollm2-135m",
        query_instruction: str | None = None,
        steps: int | None = None,
        backend: str | None = None,
        device: ComponentDevice | None = None,
        dtype: str = "auto",
    ) -> None:
        """Creates the component; the model is loaded by `warm_up` or at the first `run`.

        :param model: a bundled name, a local folder (merged model or PEFT adapter), or a Hub id.
        :param query_instruction: what a query gets that brings no instruction; None: the checkpoint's default.
        :param steps: refinement steps; None: the checkpoint's own. Give the document embedder the same.
        :param backend: None: what gircse-rag's `Embedder.from_pretrained` takes.
        :param device: None: CUDA, then Apple's GPU, then the CPU.
        :param dtype: "auto", "float32", "bfloat16" or "float16".
        :raises ValueError: the instruction is refused.
        """
        if query_instruction is not None:
            check_text(query_instruction)
        self.model = model
        self.query_instruction = query_instruction
        self.steps = steps
        self.backend = backend
        self.device = device
        self.dtype = dtype
        self._embedder: Embedder | None = None

    def warm_up(self) -> None:
        """Loads the model.

        :raises ValueError: a setting is refused, or the model cannot be loaded.
        """
        self._load()

    def to_dict(self) -> dict[str, Any]:
        """Serializes the component."""
        return default_to_dict(  # type: ignore[no-any-return]
            self,
            model=self.model,
            query_instruction=self.query_instruction,
            steps=self.steps,
            backend=self.backend,
            device=self.device,
            dtype=self.dtype,
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> GircseTextEmbedder:
        """Deserializes the component."""
        return default_from_dict(cls, data)  # type: ignore[no-any-return]

    @component.output_types(embedding=list[float], meta=dict[str, Any])
    def run(self, text: str, instruction: str | None = None) -> dict[str, Any]:
        """Embeds a query.

        :param text: the question.
        :param instruction: what makes a document a good answer; None: `query_instruction`.
        :returns: `embedding`, a unit vector, and `meta`: model, fingerprint, usage.
        :raises TypeError: the text is no string.
        :raises ValueError: the text or the instruction is refused.
        """
        if not isinstance(text, str):
            raise TypeError(
                "GircseTextEmbedder expects a string as an input. "
                "In case you want to embed a list of Documents, please use the GircseDocumentEmbedder."
            )
        embedder = self._load()
        chosen = self.query_instruction if instruction is None else instruction
        result = embedder.embed([text], role="query", instruction=chosen)
        return {"embedding": result.vectors[0].tolist(), "meta": meta(self.model, embedder, result)}

    @component.output_types(embedding=list[float], meta=dict[str, Any])
    async def run_async(self, text: str, instruction: str | None = None) -> dict[str, Any]:
        """`run` in a thread."""
        return await asyncio.to_thread(self.run, text, instruction)

    def _get_telemetry_data(self) -> dict[str, Any]:
        return {"model": self.model}

    def _load(self) -> Embedder:
        if self._embedder is None:
            self._embedder = load(self.model, self.steps, self.backend, self.device, self.dtype)
        return self._embedder
