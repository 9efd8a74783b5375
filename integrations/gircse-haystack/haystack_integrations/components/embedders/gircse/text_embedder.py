"""GircseTextEmbedder: embeddings of queries."""

from __future__ import annotations

import asyncio
from typing import Any

from gircse_rag.tokens import read_instruction
from haystack import component
from haystack.utils import ComponentDevice

from haystack_integrations.components.embedders.gircse.component import GircseComponent, refuse_options


@component
class GircseTextEmbedder(GircseComponent):
    """Embeds a query and its instruction with a GIRCSE checkpoint.

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
        revision: str | None = None,
        dimensions: int | None = None,
        **other: Any,
    ) -> None:
        """Creates the component. `warm_up` or the first `run` loads the model.

        :param model: a bundled name, a local folder (merged model or PEFT adapter), or a Hub id.
        :param query_instruction: instruction (a sentence or a name) for queries that are given none. None: the
            checkpoint's default.
        :param steps: refinement steps. None: the checkpoint's default. Must match the document embedder's.
        :param backend: execution backend. None: the default of `gircse_rag.Embedder.from_pretrained`.
        :param device: None: CUDA if available, else Apple's GPU, else the CPU.
        :param dtype: "auto", "float32", "bfloat16" or "float16".
        :param revision: branch, tag or commit of a Hub id. None: its main branch.
        :param dimensions: number of components that shortened vectors keep. None: all.
        :raises ValueError: the instruction is invalid.
        :raises TypeError: there is no such option; says what replaces that of another embedder.
        """
        refuse_options(GircseTextEmbedder, other)
        if query_instruction is not None:
            read_instruction(query_instruction)
        super(GircseTextEmbedder, self).__init__(model, steps, backend, device, dtype, revision, dimensions)  # noqa: UP008 # @component replaces the class
        self.query_instruction = query_instruction

    @component.output_types(embedding=list[float], meta=dict[str, Any])
    def run(self, text: str, instruction: str | None = None) -> dict[str, Any]:
        """Embeds a query.

        :param text: the question.
        :param instruction: describes what makes a document relevant. None: `query_instruction`.
        :returns: `embedding`, a unit vector, and `meta`: model, fingerprint, usage.
        :raises TypeError: the text is not a string.
        :raises ValueError: the text or the instruction is invalid.
        """
        if not isinstance(text, str):
            raise TypeError(
                "GircseTextEmbedder expects a string as an input. "
                "In case you want to embed a list of Documents, please use the GircseDocumentEmbedder."
            )
        instruction = self.query_instruction if instruction is None else instruction
        result = self.embedder.embed([text], role="query", instruction=instruction)
        return {"embedding": result.vectors[0].tolist(), "meta": self._meta(result)}

    @component.output_types(embedding=list[float], meta=dict[str, Any])
    async def run_async(self, text: str, instruction: str | None = None) -> dict[str, Any]:
        """Runs `run` in a thread."""
        return await asyncio.to_thread(self.run, text, instruction)
