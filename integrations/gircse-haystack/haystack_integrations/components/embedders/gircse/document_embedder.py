"""GircseDocumentEmbedder: documents."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from haystack import Document, component
from haystack.utils import ComponentDevice

from haystack_integrations.components.embedders.gircse.component import GircseComponent


@component
class GircseDocumentEmbedder(GircseComponent):
    """Embeds documents with a GIRCSE checkpoint, bare: a document takes no instruction.

    ```python
    from haystack import Document
    from haystack_integrations.components.embedders.gircse import GircseDocumentEmbedder

    documents = GircseDocumentEmbedder().run([Document(content="gzip compresses files.")])["documents"]
    ```
    """

    def __init__(
        self,
        model: str = "smollm2-135m",
        steps: int | None = None,
        backend: str | None = None,
        device: ComponentDevice | None = None,
        dtype: str = "auto",
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = "\n",
    ) -> None:
        """Creates the component; the model is loaded by `warm_up` or at the first `run`.

        :param model: a bundled name, a local folder (merged model or PEFT adapter), or a Hub id.
        :param steps: refinement steps; None: the checkpoint's own. Part of the vector space.
        :param backend: None: what gircse-rag's `Embedder.from_pretrained` takes.
        :param device: None: CUDA, then Apple's GPU, then the CPU.
        :param dtype: "auto", "float32", "bfloat16" or "float16".
        :param meta_fields_to_embed: metadata fields to embed along with the document text.
        :param embedding_separator: between the metadata fields and the document text.
        """
        super(GircseDocumentEmbedder, self).__init__(model, steps, backend, device, dtype)  # noqa: UP008 # the decorator
        self.meta_fields_to_embed = meta_fields_to_embed or []
        self.embedding_separator = embedding_separator

    @component.output_types(documents=list[Document], meta=dict[str, Any])
    def run(self, documents: list[Document]) -> dict[str, Any]:
        """Embeds documents.

        :param documents: the documents; they are not changed.
        :returns: `documents`, copies with unit vectors as embeddings, and `meta`: model, fingerprint, usage.
        :raises TypeError: they are no list of documents.
        :raises ValueError: a document has no text, or one that is refused; says which. Nothing was embedded.
        """
        if not isinstance(documents, list) or not all(isinstance(document, Document) for document in documents):
            raise TypeError(
                "GircseDocumentEmbedder expects a list of Documents as input. "
                "In case you want to embed a string, please use the GircseTextEmbedder."
            )
        if not documents:
            return {"documents": [], "meta": self._meta(None)}
        result = self.embedder.embed([self._text(document) for document in documents], role="document")
        embedded = [
            replace(document, embedding=vector.tolist())
            for document, vector in zip(documents, result.vectors, strict=True)
        ]
        return {"documents": embedded, "meta": self._meta(result)}

    @component.output_types(documents=list[Document], meta=dict[str, Any])
    async def run_async(self, documents: list[Document]) -> dict[str, Any]:
        """`run` in a thread."""
        return await asyncio.to_thread(self.run, documents)

    def _text(self, document: Document) -> str:
        fields = [str(document.meta[key]) for key in self.meta_fields_to_embed if document.meta.get(key) is not None]
        return self.embedding_separator.join([*fields, document.content or ""])
