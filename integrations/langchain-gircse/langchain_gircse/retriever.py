"""GircseRetriever: a retriever whose instruction is a field, an argument of `invoke`, or configurable."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, ClassVar, Literal, Protocol, Self, runtime_checkable

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.runnables.config import run_in_executor
from langchain_core.vectorstores import VectorStore, VectorStoreRetriever
from pydantic import ConfigDict, model_validator
from pydantic.json_schema import SkipJsonSchema

from langchain_gircse.embeddings import GircseEmbeddings

Steps = int | Literal["auto"]


@runtime_checkable
class _SearchesByQuestion(Protocol):
    """A store that ranks by the words of the question too: GircseQdrantVectorStore."""

    def search_by_question(self, query: str, vector: list[float], **options: Any) -> list[tuple[Document, float]]: ...


class GircseRetriever(VectorStoreRetriever):
    """Retrieve from any LangChain vector store that uses GircseEmbeddings and can search by vector.

    Example:
        ```python
        retriever = GircseRetriever(vectorstore=store, search_kwargs={"k": 3})
        retriever.invoke("how do I read a zip file?", instruction="Given a task, retrieve the command that does it")
        chain = retriever.bind(instruction="Given a question, retrieve passages that answer it") | ...
        ```
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    vectorstore: SkipJsonSchema[VectorStore]
    """A store that embeds with GircseEmbeddings."""
    instruction: str | None = None
    """Describes what makes a document relevant. None: the embeddings' `query_instruction`."""
    steps: Steps | None = None
    """Refinement steps for the question. None: as for documents."""
    allowed_search_types: ClassVar[Collection[str]] = ("similarity", "similarity_score_threshold", "mmr")
    """With "similarity", `search_kwargs={"score_threshold": 0.5}` is a minimum cosine similarity in Qdrant. With
    "similarity_score_threshold" it is a minimum relevance score, as the store defines it: (cosine + 1) / 2 in Qdrant.
    """

    @model_validator(mode="after")
    def _check_embeddings(self) -> Self:
        if not isinstance(self.vectorstore.embeddings, GircseEmbeddings):
            raise ValueError(
                f"the vector store embeds with {type(self.vectorstore.embeddings).__name__}, which takes no "
                "instruction; create the store with GircseEmbeddings"
            )
        return self

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        instruction: str | None = None,
        steps: Steps | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        vector = self._embeddings.embed_query(query, **self._query_options(instruction, steps))
        options = self.search_kwargs | kwargs
        if self.search_type == "mmr":
            return self.vectorstore.max_marginal_relevance_search_by_vector(vector, **options)
        if self.search_type == "similarity_score_threshold":
            return self._search_above_threshold(vector, **options)
        return self._search(query, vector, options)

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        instruction: str | None = None,
        steps: Steps | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        vector = await self._embeddings.aembed_query(query, **self._query_options(instruction, steps))
        options = self.search_kwargs | kwargs
        if self.search_type == "mmr":
            return await self.vectorstore.amax_marginal_relevance_search_by_vector(vector, **options)
        if self.search_type == "similarity_score_threshold":
            return await run_in_executor(None, self._search_above_threshold, vector, **options)
        if isinstance(self.vectorstore, _SearchesByQuestion):
            return await run_in_executor(None, self._search, query, vector, options)
        return await self.vectorstore.asimilarity_search_by_vector(vector, **options)

    def _search_above_threshold(self, vector: list[float], *, score_threshold: float, **options: Any) -> list[Document]:
        """Search as `similarity_search_with_relevance_scores` does, but by vector."""
        store: Any = self.vectorstore
        try:
            relevance = store._select_relevance_score_fn()
            found = store.similarity_search_with_score_by_vector(vector, **options)
        except (NotImplementedError, AttributeError) as error:
            raise ValueError(
                f"{type(store).__name__} has no relevance scores by vector, which similarity_score_threshold needs; "
                "filter by the scores of its similarity_search_with_score_by_vector instead"
            ) from error
        return [document for document, score in found if relevance(score) >= score_threshold]

    def _search(self, query: str, vector: list[float], options: dict[str, Any]) -> list[Document]:
        if isinstance(self.vectorstore, _SearchesByQuestion):
            return [document for document, _ in self.vectorstore.search_by_question(query, vector, **options)]
        return self.vectorstore.similarity_search_by_vector(vector, **options)

    @property
    def _embeddings(self) -> GircseEmbeddings:
        embeddings = self.vectorstore.embeddings
        assert isinstance(embeddings, GircseEmbeddings)
        return embeddings

    def _query_options(self, instruction: str | None, steps: Steps | None) -> dict[str, Any]:
        return {
            "instruction": self.instruction if instruction is None else instruction,
            "steps": self.steps if steps is None else steps,
        }
