"""Cache keys that separate queries from texts, and one instruction, number of steps or model from another."""

from __future__ import annotations

import hashlib
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

from llama_index.core.storage.kvstore.types import DEFAULT_COLLECTION, BaseKVStore

Steps = int | Literal["auto"]


@dataclass(frozen=True)
class Question:
    """Settings of a query besides its text. steps None: as for texts."""

    instruction: str
    steps: Steps | None


# LlamaIndex passes only the text to the cache and to `_get_query_embedding`; this variable carries the rest.
QUESTION: ContextVar[Question | None] = ContextVar("gircse_question", default=None)


class SeparateKeys(BaseKVStore):
    """A view of a key-value store with one collection per model, role, instruction and number of steps.

    LlamaIndex's cache is keyed by the text alone. Without this view, a query would get the cached vector of an equal
    document, or of the same query under another instruction or model.

    Attributes:
        store: the store passed as `embeddings_cache`.
    """

    def __init__(self, store: BaseKVStore, fingerprint: str) -> None:
        self.store = store
        self._fingerprint = fingerprint

    def _collection(self, collection: str) -> str:
        question = QUESTION.get()
        role = "text"
        if question is not None:
            role = "query-" + hashlib.sha256(repr((question.instruction, question.steps)).encode()).hexdigest()[:16]
        return f"{collection}-{self._fingerprint}-{role}"

    def put(self, key: str, val: dict[str, Any], collection: str = DEFAULT_COLLECTION) -> None:
        self.store.put(key, val, self._collection(collection))

    async def aput(self, key: str, val: dict[str, Any], collection: str = DEFAULT_COLLECTION) -> None:
        await self.store.aput(key, val, self._collection(collection))

    def get(self, key: str, collection: str = DEFAULT_COLLECTION) -> dict[str, Any] | None:
        return self.store.get(key, self._collection(collection))  # type: ignore[no-any-return]

    async def aget(self, key: str, collection: str = DEFAULT_COLLECTION) -> dict[str, Any] | None:
        return await self.store.aget(key, self._collection(collection))  # type: ignore[no-any-return]

    def get_all(self, collection: str = DEFAULT_COLLECTION) -> dict[str, dict[str, Any]]:
        return self.store.get_all(self._collection(collection))  # type: ignore[no-any-return]

    async def aget_all(self, collection: str = DEFAULT_COLLECTION) -> dict[str, dict[str, Any]]:
        return await self.store.aget_all(self._collection(collection))  # type: ignore[no-any-return]

    def delete(self, key: str, collection: str = DEFAULT_COLLECTION) -> bool:
        return self.store.delete(key, self._collection(collection))  # type: ignore[no-any-return]

    async def adelete(self, key: str, collection: str = DEFAULT_COLLECTION) -> bool:
        return await self.store.adelete(key, self._collection(collection))  # type: ignore[no-any-return]
