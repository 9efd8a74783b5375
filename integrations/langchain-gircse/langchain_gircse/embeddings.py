"""GircseEmbeddings: LangChain's `Embeddings` over `gircse_rag.Embedder`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, Self

from gircse_rag.embedder import Embedder
from gircse_rag.errors import GircseError, InputError
from gircse_rag.option_hints import explain_options
from gircse_rag.tokens import check_text, read_instruction
from langchain_core.embeddings import Embeddings
from langchain_core.exceptions import ModelInvalidRequestError
from langchain_core.runnables.config import run_in_executor
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic.json_schema import SkipJsonSchema

_EMBEDDER_FIELDS = {"model_name", "revision", "backend", "device", "dtype", "steps", "dimensions"}


class GircseInvalidRequestError(ModelInvalidRequestError, InputError):
    """A text, an instruction or a number of steps is invalid; nothing was computed.

    Subclasses both LangChain's error and gircse-rag's InputError (a ValueError). `index` is the text's position.
    """


class GircseEmbeddings(BaseModel, Embeddings):
    """LangChain embeddings from a GIRCSE checkpoint. Queries get an instruction, documents never do.

    The constructor loads the model. Instances can be used from several threads and event loops.

    Example:
        ```python
        from langchain_gircse import GircseEmbeddings

        embeddings = GircseEmbeddings(model="smollm2-135m")
        vectors = embeddings.embed_documents(["gzip compresses files."])
        vector = embeddings.embed_query("make a file smaller", instruction="Given a question, find the answer")
        ```

    Raises:
        pydantic.ValidationError: a field is unknown or invalid, or the model cannot be loaded.
    """

    model_config = ConfigDict(
        extra="forbid", populate_by_name=True, protected_namespaces=(), arbitrary_types_allowed=True
    )

    model_name: str = Field(default="smollm2-135m", alias="model")
    """A bundled name, a local folder (merged model or PEFT adapter), or a Hub id."""
    revision: str | None = None
    """Branch, tag or commit of a Hub id. None: its main branch."""
    query_instruction: str | None = None
    """Instruction (a sentence or a name) for queries that are given none. None: the checkpoint's default."""
    steps: int | None = None
    """Refinement steps for documents and, by default, queries. None: the checkpoint's default."""
    batch_size: int = Field(default=256, ge=1)
    """Texts per batch in `aembed_documents`. Cancellation takes effect between batches."""
    backend: Literal["paged", "reference"] | None = None
    """Execution backend. None: the default of `Embedder.from_pretrained`."""
    device: str = "auto"
    dtype: str = "auto"
    """"auto" (bfloat16 where the hardware multiplies it natively), "float32", "bfloat16" or "float16"."""
    dimensions: int | None = None
    """Leading components of each vector to keep. None: all."""
    show_progress: bool = False
    """Show progress of `embed_documents` on stderr: a bar on a terminal, else a line every ten seconds."""
    embedder: SkipJsonSchema[Embedder] = Field(default=None, exclude=True, repr=False)  # type: ignore[assignment]
    """A loaded embedder to share. It fixes model, revision, steps, backend, device, dtype, dimensions."""

    @model_validator(mode="before")
    @classmethod
    def _explain_options(cls, values: Any) -> Any:
        ours = {"model", *cls.model_fields}
        if isinstance(values, dict) and (hint := explain_options(values.keys(), ours)):
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
        if self.embedder is not None:
            if conflicts := sorted(_EMBEDDER_FIELDS & self.model_fields_set):
                raise ValueError(f"embedder already determines {', '.join(conflicts)}; do not pass both")
            self.model_name = self.embedder.spec.adapter or self.embedder.spec.base_model
            return self
        options = {} if self.backend is None else {"backend": self.backend}
        try:
            self.embedder = Embedder.from_pretrained(
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
        return self

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed documents without an instruction: one unit vector per text, in order.

        Raises:
            GircseInvalidRequestError: a text is invalid (`index` is its position); nothing was computed.
        """
        if isinstance(texts, (list, tuple)) and not texts:
            return []
        with translate_input_errors():
            vectors: list[list[float]] = self.embedder.embed_documents(texts, show_progress=self.show_progress).tolist()
        return vectors

    def embed_query(
        self, text: str, *, instruction: str | None = None, steps: int | Literal["auto"] | None = None
    ) -> list[float]:
        """Embed a query with its instruction: a unit vector.

        Args:
            text: the question.
            instruction: describes what makes a document relevant. None: `query_instruction`.
            steps: refinement steps; "auto" stops when the vector no longer changes. None: as for documents.

        Raises:
            GircseInvalidRequestError: an argument is invalid.
        """
        with translate_input_errors():
            vector: list[float] = self.embedder.embed_queries(
                [text], instruction=self.query_instruction if instruction is None else instruction, steps=steps
            )[0].tolist()
        return vector

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """Run `embed_documents` in a thread, batch by batch. Cancellation stops it after the current batch."""
        if not isinstance(texts, (list, tuple)) or len(texts) <= self.batch_size:
            return await run_in_executor(None, self.embed_documents, texts)
        with translate_input_errors():
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
        """Run `embed_query` in a thread."""
        return await run_in_executor(None, self.embed_query, text, instruction=instruction, steps=steps)


@contextmanager
def translate_input_errors() -> Iterator[None]:
    """Raise InputError as GircseInvalidRequestError, which LangChain's callers expect."""
    try:
        yield
    except InputError as error:
        raise GircseInvalidRequestError(str(error), index=error.index) from error
