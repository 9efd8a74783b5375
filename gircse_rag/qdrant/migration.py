"""To another model: `migrate` embeds a collection's stored texts again, into a new collection.

    OLD  -- pages of points, by id -->  embed page_content  -->  NEW: the same ids and payloads, new vectors
    when a whole pass over OLD finds every point in NEW as it is: the alias is moved, in one request

There is nothing else to keep: killed at any moment, the same call goes on with the points that NEW does not have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qdrant_client import QdrantClient, models

from gircse_rag.backoff import DEADLINE
from gircse_rag.errors import InputError, StoreError
from gircse_rag.qdrant.foreign import read_payload
from gircse_rag.qdrant.points import Points, RefusedError
from gircse_rag.qdrant.retry import Retry
from gircse_rag.qdrant.schema import VECTOR, ensure_collection
from gircse_rag.qdrant.stores import store_errors, store_name
from gircse_rag.tokens import encode

if TYPE_CHECKING:
    from gircse_rag.embedder import Embedder

_PASSES = 100


@dataclass
class MigrationReport:
    """What a migration did.

    Attributes:
        points: of the old collection, in the last pass over it.
        embedded: points that were embedded and written.
        unchanged: points that the new collection had already, from a run that was cut short.
        failed: id -> why a point could not be embedded or stored. The new collection has nothing of it, or what an
            earlier run wrote.
        extra: points of the new collection that the old one has not.
        alias_moved: whether the alias now names the new collection. It is not moved while anything failed or is extra.
        prompt_tokens: of the embedded points, also of those that could not be stored.
    """

    points: int = 0
    embedded: int = 0
    unchanged: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    extra: int = 0
    alias_moved: bool = False
    prompt_tokens: int = 0


def migrate(
    old: str,
    new: str,
    *,
    embedder: Embedder,
    client: QdrantClient,
    alias: str | None = None,
    batch_size: int = 128,
    progress: Callable[[int, int], None] | None = None,
    deadline: float = DEADLINE,
) -> MigrationReport:
    """Embed the texts of collection `old` with another model, into `new`, and then let `alias` name that.

    Every point with a text is taken, whoever wrote it, with its id and its payload; `old` stays as it is and answers
    meanwhile. Points that are written into `old` meanwhile are found by another pass. `new` is made if there is none
    (`create_collection` makes one with a server's own settings), and what it has already is not embedded again. A point
    that cannot be embedded, or that the store refuses, fails alone.

    Args:
        alias: moved in one request, so a search by it always has a whole collection; made if there is none.
        batch_size: points read and embedded at once. They are written in as many requests as a server needs.
        progress: called after every batch with the points done and those there are.
        deadline: seconds for which a request to the store that fails is repeated, where that helps.

    Raises:
        InputError: `old` and `new` are one collection, `new` is an alias, or a name or a number is refused.
        SpecMismatchError: `new` was made with another model than the embedder's.
        StoreError: there is no `old`, `alias` is the name of a collection, or the store does not answer. Run again.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise InputError(f"batch_size must be an integer of at least 1, not {batch_size!r}")
    ask = Retry(store_name(client), deadline)
    with store_errors(client):
        names = {found.name for found in ask(client.get_collections).collections}
        aliases = {found.alias_name: found.collection_name for found in ask(client.get_aliases).aliases}
        if alias == new:
            raise InputError(f"the alias and the new collection are both called {new!r}; give one another name")
        if aliases.get(old, old) == aliases.get(new, new):
            raise InputError(f"{old!r} and {new!r} are one collection; give the new one a name of its own")
        if aliases.get(old, old) not in names:
            raise StoreError(f"there is no collection {old!r} (there is: {', '.join(sorted(names)) or 'none'})")
        if alias in names:
            raise StoreError(f"{alias!r} is a collection, and Qdrant takes no alias of that name; choose another")
        if new in aliases:
            raise InputError(f"{new!r} is an alias, of {aliases[new]!r}; give the new collection a name of its own")
        ask(ensure_collection, client, new, embedder.spec)
        return _Migration(aliases.get(old, old), new, embedder, client, ask, batch_size, progress).run(alias, aliases)


class _Migration:
    def __init__(
        self,
        old: str,
        new: str,
        embedder: Embedder,
        client: QdrantClient,
        ask: Retry,
        batch_size: int,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self._old, self._new = old, new
        self._embedder, self._client, self._ask = embedder, client, ask
        self._batch_size, self._progress = batch_size, progress
        self._points = Points(client, new, ask)
        self._report = MigrationReport()
        self._common = 0  # points of the old collection that the new one has, as the last pass found it

    def run(self, alias: str | None, aliases: dict[str, str]) -> MigrationReport:
        report = self._report
        total = self._ask(self._client.count, self._old).count
        for _ in range(_PASSES):
            if not self._pass(total):
                break
        else:
            raise StoreError(f"collection {self._old!r} keeps changing: stop writing into it, and run again")
        report.extra = self._ask(self._client.count, self._new).count - self._common
        if alias is not None and not report.failed and not report.extra:
            change: list[models.CreateAliasOperation | models.DeleteAliasOperation] = [
                models.CreateAliasOperation(
                    create_alias=models.CreateAlias(collection_name=self._new, alias_name=alias)
                )
            ]
            if alias in aliases:
                change.insert(0, models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias)))
            self._ask(self._client.update_collection_aliases, change)
            report.alias_moved = True
        return report

    def _pass(self, total: int) -> bool:
        """Go once through the old collection; whether anything had to be written."""
        report, before = self._report, self._report.embedded
        report.points = report.unchanged = self._common = 0
        for page in self._pages():
            report.points += len(page)
            there = {
                str(point.id): point.payload
                for point in self._ask(self._client.retrieve, self._new, [point.id for point in page])
            }
            self._common += len(there)
            todo = []
            for point in page:
                if str(point.id) in there and there[str(point.id)] == point.payload:
                    report.unchanged += 1
                elif str(point.id) not in report.failed:
                    todo.append(point)
            self._embed(todo)
            if self._progress is not None:
                self._progress(min(report.points, total), total)
        report.unchanged -= before
        return report.embedded > before

    def _pages(self) -> Iterator[list[models.Record]]:
        offset: Any = None
        while True:
            page, offset = self._ask(
                self._client.scroll, self._old, limit=self._batch_size, offset=offset, with_payload=True
            )
            if page:
                yield page
            if offset is None:
                return

    def _embed(self, points: list[models.Record]) -> None:
        report = self._report
        chosen, texts = [], []
        for point in points:
            text = read_payload(point.id, point.payload)[1]
            if (reason := self._refusal(text)) is not None:
                report.failed[str(point.id)] = reason
            else:
                chosen.append(point)
                texts.append(text)
        if not chosen:
            return
        result = self._embedder.embed(
            texts,
            role="document",
            steps=self._embedder.spec.document_steps,
            on_error="return",
        )
        made = []
        for row, point in enumerate(chosen):
            if row in result.errors:
                report.failed[str(point.id)] = str(result.errors[row])
            else:
                vector = {VECTOR: result.vectors[row].tolist()}
                made.append(models.PointStruct(id=point.id, vector=vector, payload=point.payload or {}))
                report.prompt_tokens += int(result.prompt_tokens[row])
        self._write(made)

    def _write(self, points: list[models.PointStruct]) -> None:
        """Points that the store refuses are halved until those are found that it refuses alone."""
        try:
            self._points.write(points)
        except RefusedError as error:
            if len(points) == 1:
                self._report.failed[str(points[0].id)] = str(error)
                return
            self._write(points[: len(points) // 2])
            self._write(points[len(points) // 2 :])
        else:
            self._report.embedded += len(points)

    def _refusal(self, text: str) -> str | None:
        """Why a text cannot be embedded, or None."""
        spec = self._embedder.spec
        if not text.strip():
            return "there is no text in its payload (page_content)"
        try:
            cut = encode(self._embedder.tokenizer, spec, text, role="document", instruction=None).truncated
        except InputError as error:
            return str(error)
        if cut:
            return (
                f"it is longer than the {spec.max_length} tokens that the new model reads; ingest its document into "
                "the new collection, which cuts it anew"
            )
        return None
