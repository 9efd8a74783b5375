"""GircseTextEmbedder: queries."""

from __future__ import annotations

import asyncio
from typing import Any

from gircse_rag.tokens import check_text
from haystack import component
from haystack.utils import ComponentDevice

from haystack_integrations.components.embedders.gircse.component import GircseComponent


@component
class GircseTextEmbedder(GircseComponent):
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
        super(GircseTextEmbedder, self).__init__(model, steps, backend, device, dtype)  # noqa: UP008 # the decorator
        self.query_instruction = query_instruction

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
        chosen = self.query_instruction if instruction is None else instruction
        result = self.embedder.embed([text], role="query", instruction=chosen)
        return {"embedding": result.vectors[0].tolist(), "meta": self._meta(result)}

    @component.output_types(embedding=list[float], meta=dict[str, Any])
    async def run_async(self, text: str, instruction: str | None = None) -> dict[str, Any]:
        """`run` in a thread."""
        return await asyncio.to_thread(self.run, text, instruction)
