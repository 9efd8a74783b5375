"""GircseDocumentEmbedder: embeddings of documents."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from haystack import Document, component
from haystack.utils import ComponentDevice

from haystack_integrations.components.embedders.gircse.component import GircseComponent, refuse_options


@component
class GircseDocumentEmbedder(GircseComponent):
    """Embeds documents with a GIRCSE checkpoint. Documents take no instruction.

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
        revision: str | None = None,
        dimensions: int | None = None,
        progress_bar: bool = False,
        **other: Any,
    ) -> None:
        """Creates the component. `warm_up` or the first `run` loads the model.

        :param model: a bundled name, a local folder (merged model or PEFT adapter), or a Hub id.
        :param steps: refinement steps. None: the checkpoint's default. Part of the vector space.
        :param backend: execution backend. None: the default of `gircse_rag.Embedder.from_pretrained`.
        :param device: None: CUDA if available, else Apple's GPU, else the CPU.
        :param dtype: "auto", "float32", "bfloat16" or "float16".
        :param meta_fields_to_embed: metadata fields to embed along with the document text.
        :param embedding_separator: string between the metadata fields and the document text.
        :param revision: branch, tag or commit of a Hub id. None: its main branch.
        :param dimensions: number of components that shortened vectors keep. None: all.
        :param progress_bar: show progress on stderr: a bar on a terminal, else a line every ten seconds.
        :raises TypeError: there is no such option; says what replaces that of another embedder.
        """
        refuse_options(GircseDocumentEmbedder, other)
        super(GircseDocumentEmbedder, self).__init__(model, steps, backend, device, dtype, revision, dimensions)  # noqa: UP008 # @component replaces the class
        self.meta_fields_to_embed = meta_fields_to_embed or []
        self.embedding_separator = embedding_separator
        self.progress_bar = progress_bar

    @component.output_types(documents=list[Document], meta=dict[str, Any])
    def run(self, documents: list[Document]) -> dict[str, Any]:
        """Embeds documents.

        :param documents: documents to embed; they are not modified.
        :returns: `documents`, copies with unit vectors as embeddings, and `meta`: model, fingerprint, usage.
        :raises TypeError: the input is not a list of documents.
        :raises ValueError: a document has no text or an invalid one. Nothing was embedded.
        """
        if not isinstance(documents, list) or not all(isinstance(document, Document) for document in documents):
            raise TypeError(
                "GircseDocumentEmbedder expects a list of Documents as input. "
                "In case you want to embed a string, please use the GircseTextEmbedder."
            )
        if not documents:
            return {"documents": [], "meta": self._meta(None)}
        texts = [self._text(document) for document in documents]
        result = self.embedder.embed(texts, role="document", show_progress=self.progress_bar)
        embedded = [
            replace(document, embedding=vector.tolist())
            for document, vector in zip(documents, result.vectors, strict=True)
        ]
        return {"documents": embedded, "meta": self._meta(result)}

    @component.output_types(documents=list[Document], meta=dict[str, Any])
    async def run_async(self, documents: list[Document]) -> dict[str, Any]:
        """Runs `run` in a thread."""
        return await asyncio.to_thread(self.run, documents)

    def _text(self, document: Document) -> str:
        fields = [str(document.meta[key]) for key in self.meta_fields_to_embed if document.meta.get(key) is not None]
        return self.embedding_separator.join([*fields, document.content or ""])
