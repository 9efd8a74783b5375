"""GircseEmbeddings: LangChain's `Embeddings` over `gircse_rag.Embedder`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, Self

from gircse_rag.embedder import Embedder
from gircse_rag.errors import GircseError, InputError
from gircse_rag.tokens import check_text
from langchain_core.embeddings import Embeddings
from langchain_core.exceptions import ModelInvalidRequestError
from langchain_core.runnables.config import run_in_executor
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

_OF_THE_EMBEDDER = {"model_name", "backend", "device", "dtype", "steps"}


class GircseInvalidRequestError(ModelInvalidRequestError, InputError):
    """A text, an instruction or a number of steps is refused; nothing was computed.

    LangChain's error for that, and gircse-rag's (a ValueError, with the position of the text in `index`).
    """


class GircseEmbeddings(BaseModel, Embeddings):
    """Embeddings from a GIRCSE checkpoint. A query gets an instruction, a document never does.

    The model is loaded when the object is made. Safe to use from several threads and event loops.

    Example:
        ```python
        from langchain_gircse import GircseEmbeddings

        embeddings = GircseEmbeddings(model="smollm2-135m")
        vectors = embeddings.embed_documents(["gzip compresses files."])
        vector = embeddings.embed_query("make a file smaller", instruction="Given a question, find the answer")
        ```

    Raises:
        pydantic.ValidationError: a field is unknown or refused, or the model cannot be loaded; says why.
    """

    model_config = ConfigDict(
        extra="forbid", populate_by_name=True, protected_namespaces=(), arbitrary_types_allowed=True
    )

    model_name: str = Field(default="smollm2-135m", alias="model")
    """A bundled name, a local folder (merged model or PEFT adapter), or a Hub id."""
    query_instruction: str | None = None
    """What a query gets that brings no instruction of its own; None: the checkpoint's default."""
    steps: int | None = None
    """Refinement steps of documents and, by default, of queries; None: the checkpoint's own."""
    batch_size: int = Field(default=256, ge=1)
    """Texts between two looks at the event loop: a cancelled `aembed_documents` stops after the batch under way."""
    backend: Literal["paged", "reference"] | None = None
    """None: what `Embedder.from_pretrained` takes."""
    device: str = "auto"
    dtype: str = "auto"
    """"auto" (bfloat16 where the hardware multiplies it natively), "float32", "bfloat16" or "float16"."""
    embedder: Embedder = Field(default=None, exclude=True, repr=False)  # type: ignore[assignment]
    """An embedder that is loaded already, to share it; then model, steps, backend, device and dtype are its own."""

    @field_validator("query_instruction")
    @classmethod
    def _check_instruction(cls, instruction: str | None) -> str | None:
        return instruction if instruction is None else check_text(instruction)

    @model_validator(mode="after")
    def _load(self) -> Self:
        if self.embedder is not None:
            if given := sorted(_OF_THE_EMBEDDER & self.model_fields_set):
                raise ValueError(f"embedder is given, which fixes {', '.join(given)}; leave them out")
            self.model_name = self.embedder.spec.adapter or self.embedder.spec.base_model
            return self
        chosen = {} if self.backend is None else {"backend": self.backend}
        try:
            self.embedder = Embedder.from_pretrained(
                self.model_name, device=self.device, dtype=self.dtype, steps=self.steps, **chosen
            )
        except GircseError as error:
            raise ValueError(str(error)) from error
        return self

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed documents, bare: one unit vector a text, in order; [] for [].

        Raises:
            GircseInvalidRequestError: a text is refused (`index` says which); nothing was computed.
        """
        if isinstance(texts, (list, tuple)) and not texts:
            return []
        with refusals():
            vectors: list[list[float]] = self.embedder.embed_documents(texts).tolist()
        return vectors

    def embed_query(
        self, text: str, *, instruction: str | None = None, steps: int | Literal["auto"] | None = None
    ) -> list[float]:
        """Embed a query, rendered with its instruction: a unit vector.

        Args:
            text: the question.
            instruction: what makes a document a good answer; None: `query_instruction`.
            steps: refinement steps; "auto" stops when they no longer change the vector; None: as documents.

        Raises:
            GircseInvalidRequestError: an argument is refused.
        """
        with refusals():
            vector: list[float] = self.embedder.embed_queries(
                [text], instruction=self.query_instruction if instruction is None else instruction, steps=steps
            )[0].tolist()
        return vector

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """`embed_documents` in a thread, batch by batch. Cancelled, it stops after the batch under way."""
        if not isinstance(texts, (list, tuple)) or len(texts) <= self.batch_size:
            return await run_in_executor(None, self.embed_documents, texts)
        with refusals():
            for index, text in enumerate(texts):
                check_text(text, index)
        vectors: list[list[float]] = []
        for start in range(0, len(texts), self.batch_size):
            batch = texts[start : start + self.batch_size]
            vectors += await run_in_executor(None, self.embed_documents, batch)
        return vectors

    async def aembed_query(
        self, text: str, *, instruction: str | None = None, steps: int | Literal["auto"] | None = None
    ) -> list[float]:
        """`embed_query` in a thread."""
        return await run_in_executor(None, self.embed_query, text, instruction=instruction, steps=steps)


@contextmanager
def refusals() -> Iterator[None]:
    """InputError as LangChain's callers know it."""
    try:
        yield
    except InputError as error:
        raise GircseInvalidRequestError(str(error), index=error.index) from error
