"""GircseEmbedding: LlamaIndex's `BaseEmbedding` over `gircse_rag.Embedder`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, Self, cast

from gircse_rag.embedder import Embedder
from gircse_rag.errors import GircseError
from gircse_rag.tokens import check_text
from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding
from llama_index.core.bridge.pydantic import ConfigDict, Field, field_validator, model_validator
from llama_index.core.storage.kvstore.types import BaseKVStore

from llama_index.embeddings.gircse.cache import QUESTION, Question, SeparateKeys, Steps

_OF_THE_EMBEDDER = {"model_name", "backend", "device", "dtype", "steps"}


class GircseEmbedding(BaseEmbedding):
    """Embeddings from a GIRCSE checkpoint. A query gets an instruction, a text never does.

    The model is loaded when the object is made. Safe to use from several threads and event loops.

    Examples:
        ```python
        from llama_index.core import Settings
        from llama_index.embeddings.gircse import GircseEmbedding

        Settings.embed_model = GircseEmbedding(model_name="smollm2-135m")
        ```

    Raises:
        pydantic.ValidationError: a field is unknown or refused, or the model cannot be loaded; says why.
    """

    model_config = ConfigDict(
        extra="forbid", validate_assignment=True, protected_namespaces=(), arbitrary_types_allowed=True
    )

    model_name: str = Field(
        default="smollm2-135m",
        frozen=True,
        description="A bundled name, a local folder (merged model or PEFT adapter), or a Hub id.",
    )
    embed_batch_size: int = Field(
        default=1024, gt=0, le=2048, description="Texts handed over at once; the engine makes its own batches of them."
    )
    query_instruction: str | None = Field(
        default=None, description="What a query gets that brings no instruction; None: the checkpoint's default."
    )
    steps: int | None = Field(
        default=None,
        frozen=True,
        description="Refinement steps of texts and, by default, of queries; None: the checkpoint's own.",
    )
    backend: Literal["paged", "reference"] | None = Field(
        default=None, frozen=True, description="None: what Embedder.from_pretrained takes."
    )
    device: str = Field(default="auto", frozen=True, description="'auto', or what torch calls it.")
    dtype: str = Field(default="auto", frozen=True, description="'auto', 'float32', 'bfloat16' or 'float16'.")
    embedder: Embedder = Field(
        default=None,
        frozen=True,
        exclude=True,
        repr=False,
        description="An embedder to share; then model_name, steps, backend, device and dtype are its own.",
    )

    @classmethod
    def class_name(cls) -> str:
        return "GircseEmbedding"

    @field_validator("query_instruction")
    @classmethod
    def _check_instruction(cls, instruction: str | None) -> str | None:
        return instruction if instruction is None else check_text(instruction)

    @model_validator(mode="after")
    def _load(self) -> Self:
        # Runs after assignments too, and an assignment here would come back here: hence __dict__.
        fields = self.__dict__
        if self.embedder is None:
            chosen: dict[str, Any] = {} if self.backend is None else {"backend": self.backend}
            try:
                fields["embedder"] = Embedder.from_pretrained(
                    self.model_name, device=self.device, dtype=self.dtype, steps=self.steps, **chosen
                )
            except GircseError as error:
                raise ValueError(str(error)) from error
        elif "embedder" in self.model_fields_set:
            if given := sorted(_OF_THE_EMBEDDER & self.model_fields_set):
                raise ValueError(f"embedder is given, which fixes {', '.join(given)}; leave them out")
            spec = self.embedder.spec
            fields.update(model_name=spec.adapter or spec.base_model, steps=spec.document_steps, dtype=spec.dtype)
        cache = self.embeddings_cache
        if isinstance(cache, BaseKVStore):
            fields["embeddings_cache"] = SeparateKeys(
                cache.store if isinstance(cache, SeparateKeys) else cache, self.embedder.fingerprint
            )
        return self

    def __getstate__(self) -> dict[str, Any]:
        # Without the loaded model: the copy loads its own. Of a twin, because the core deletes from what it is given.
        twin = self.model_copy()
        del twin.__dict__["embedder"]
        return super(GircseEmbedding, twin).__getstate__()  # type: ignore[no-any-return]

    def get_query_embedding(self, query: str, instruction: str | None = None, steps: Steps | None = None) -> Embedding:
        """Embed a query, rendered with its instruction: a unit vector.

        Args:
            query: the question.
            instruction: what makes a text a good answer; None: `query_instruction`, then the checkpoint's default.
            steps: refinement steps; "auto" stops when they no longer change the vector; None: as texts.

        Raises:
            ValueError: an argument is refused (gircse_rag's InputError).
        """
        with self._asking(instruction, steps):
            # __wrapped__, as the core's wrapper has reported this call's span by now.
            return BaseEmbedding.get_query_embedding.__wrapped__(self, query)

    async def aget_query_embedding(
        self, query: str, instruction: str | None = None, steps: Steps | None = None
    ) -> Embedding:
        """`get_query_embedding` in a thread."""
        with self._asking(instruction, steps):
            return await BaseEmbedding.aget_query_embedding.__wrapped__(self, query)

    def _get_query_embedding(self, query: str) -> Embedding:
        asked = QUESTION.get() or self._question(None, None)
        vectors = self.embedder.embed_queries([query], instruction=asked.instruction, steps=asked.steps)
        return cast(Embedding, vectors[0].tolist())

    async def _aget_query_embedding(self, query: str) -> Embedding:
        return await asyncio.to_thread(self._get_query_embedding, query)

    def _get_text_embedding(self, text: str) -> Embedding:
        return self._get_text_embeddings([text])[0]

    async def _aget_text_embedding(self, text: str) -> Embedding:
        return await asyncio.to_thread(self._get_text_embedding, text)

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return cast(list[Embedding], self.embedder.embed_documents(texts).tolist()) if texts else []

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)

    @contextmanager
    def _asking(self, instruction: str | None, steps: Steps | None) -> Iterator[None]:
        token = QUESTION.set(self._question(instruction, steps))
        try:
            yield
        finally:
            QUESTION.reset(token)

    def _question(self, instruction: str | None, steps: Steps | None) -> Question:
        choices = (instruction, self.query_instruction, self.embedder.spec.default_instruction)
        return Question(next(choice for choice in choices if choice is not None), steps)
