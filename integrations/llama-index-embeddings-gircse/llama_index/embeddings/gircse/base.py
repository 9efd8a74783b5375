"""GircseEmbedding: LlamaIndex's `BaseEmbedding` backed by `gircse_rag.Embedder`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, Self, cast

from gircse_rag.embedder import Embedder
from gircse_rag.errors import GircseError
from gircse_rag.option_hints import explain_options
from gircse_rag.prompts import resolve_instruction
from gircse_rag.tokens import read_instruction
from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding
from llama_index.core.bridge.pydantic import ConfigDict, Field, field_validator, model_validator
from llama_index.core.storage.kvstore.types import BaseKVStore
from pydantic.json_schema import SkipJsonSchema

from llama_index.embeddings.gircse.cache import QUESTION, Question, SeparateKeys, Steps

_EMBEDDER_FIELDS = {"model_name", "revision", "backend", "device", "dtype", "steps", "dimensions"}


class GircseEmbedding(BaseEmbedding):
    """LlamaIndex embeddings from a GIRCSE checkpoint. Queries get an instruction, texts never do.

    The constructor loads the model. Instances can be used from several threads and event loops.

    Examples:
        ```python
        from llama_index.core import Settings
        from llama_index.embeddings.gircse import GircseEmbedding

        Settings.embed_model = GircseEmbedding(model_name="smollm2-135m")
        ```

    Raises:
        pydantic.ValidationError: a field is unknown or invalid, or the model cannot be loaded.
    """

    model_config = ConfigDict(
        extra="forbid", validate_assignment=True, protected_namespaces=(), arbitrary_types_allowed=True
    )

    model_name: str = Field(
        default="smollm2-135m",
        frozen=True,
        description="A bundled name, a local folder (merged model or PEFT adapter), or a Hub id.",
    )
    revision: str | None = Field(
        default=None, frozen=True, description="Branch, tag or commit of a Hub id. None: its main branch."
    )
    embed_batch_size: int = Field(
        default=1024, gt=0, le=2048, description="Texts per call to the engine, which forms its own batches."
    )
    query_instruction: str | None = Field(
        default=None, description="Instruction for queries that are given none. None: the checkpoint's default."
    )
    steps: int | None = Field(
        default=None,
        frozen=True,
        description="Refinement steps for texts and, by default, queries. None: the checkpoint's default.",
    )
    backend: Literal["paged", "reference"] | None = Field(
        default=None, frozen=True, description="Execution backend. None: the default of Embedder.from_pretrained."
    )
    device: str = Field(default="auto", frozen=True, description="'auto', or a torch device.")
    dtype: str = Field(default="auto", frozen=True, description="'auto', 'float32', 'bfloat16' or 'float16'.")
    dimensions: int | None = Field(
        default=None, frozen=True, description="Leading components of each vector to keep. None: all."
    )
    embedder: SkipJsonSchema[Embedder] = Field(
        default=None,
        frozen=True,
        exclude=True,
        repr=False,
        description="A loaded embedder. It fixes model_name, revision, steps, backend, device, dtype, dimensions.",
    )

    @classmethod
    def class_name(cls) -> str:
        return "GircseEmbedding"

    @model_validator(mode="before")
    @classmethod
    def _explain_options(cls, values: Any) -> Any:
        if isinstance(values, dict) and (hint := explain_options(values.keys(), cls.model_fields.keys())):
            raise ValueError(hint)
        return values

    @field_validator("query_instruction")
    @classmethod
    def _check_instruction(cls, instruction: str | None) -> str | None:
        if instruction is not None:
            read_instruction(instruction)
        return instruction

    @model_validator(mode="after")
    def _load(self) -> Self:
        # Writes to __dict__: assigning a field would run this validator again.
        fields = self.__dict__
        if self.embedder is None:
            options: dict[str, Any] = {} if self.backend is None else {"backend": self.backend}
            try:
                fields["embedder"] = Embedder.from_pretrained(
                    self.model_name,
                    device=self.device,
                    dtype=self.dtype,
                    steps=self.steps,
                    revision=self.revision,
                    dimensions=self.dimensions,
                    **options,
                )
            except GircseError as error:
                raise ValueError(str(error)) from error
        elif "embedder" in self.model_fields_set:
            if conflicts := sorted(_EMBEDDER_FIELDS & self.model_fields_set):
                raise ValueError(f"embedder already determines {', '.join(conflicts)}; do not pass both")
            spec = self.embedder.spec
            fields.update(model_name=spec.adapter or spec.base_model, steps=spec.document_steps, dtype=spec.dtype)
        cache = self.embeddings_cache
        if isinstance(cache, BaseKVStore):
            fields["embeddings_cache"] = SeparateKeys(
                cache.store if isinstance(cache, SeparateKeys) else cache, self.embedder.fingerprint
            )
        return self

    def __getstate__(self) -> dict[str, Any]:
        # The state leaves out the model; unpickling loads it again. On a copy, because the base class deletes fields.
        copy = self.model_copy()
        del copy.__dict__["embedder"]
        return super(GircseEmbedding, copy).__getstate__()  # type: ignore[no-any-return]

    def get_query_embedding(self, query: str, instruction: str | None = None, steps: Steps | None = None) -> Embedding:
        """Embed a query with its instruction: a unit vector.

        Args:
            query: the question.
            instruction: describes what makes a text relevant. None: `query_instruction`, else the checkpoint's default.
            steps: refinement steps; "auto" stops when the vector no longer changes. None: as for texts.

        Raises:
            ValueError: an argument is invalid (gircse_rag's InputError).
        """
        with self._question_context(instruction, steps):
            # __wrapped__, because LlamaIndex has already opened a span for this call.
            return BaseEmbedding.get_query_embedding.__wrapped__(self, query)

    async def aget_query_embedding(
        self, query: str, instruction: str | None = None, steps: Steps | None = None
    ) -> Embedding:
        """Run `get_query_embedding` in a thread."""
        with self._question_context(instruction, steps):
            return await BaseEmbedding.aget_query_embedding.__wrapped__(self, query)

    def _get_query_embedding(self, query: str) -> Embedding:
        question = QUESTION.get() or self._make_question(None, None)
        vectors = self.embedder.embed_queries([query], instruction=question.instruction, steps=question.steps)
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
    def _question_context(self, instruction: str | None, steps: Steps | None) -> Iterator[None]:
        token = QUESTION.set(self._make_question(instruction, steps))
        try:
            yield
        finally:
            QUESTION.reset(token)

    def _make_question(self, instruction: str | None, steps: Steps | None) -> Question:
        choices = (instruction, self.query_instruction, self.embedder.spec.default_instruction)
        chosen = next(choice for choice in choices if choice is not None)
        return Question(resolve_instruction(chosen) if isinstance(chosen, str) else chosen, steps)
