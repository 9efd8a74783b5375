"""Switch to another model: `migrate` embeds the stored texts of a collection again, into a new collection.

    OLD  -- pages of points, by id -->  embed page_content  -->  NEW: same ids and payloads, new vectors
    once a whole pass over OLD finds every point up to date in NEW, one request moves the alias

No other state is kept. If the process is killed, the same call continues with the points that NEW lacks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from qdrant_client import QdrantClient, models

from gircse_rag.backoff import DEADLINE
from gircse_rag.errors import InputError, StoreError, summarize, without_index
from gircse_rag.lexical import Bm25Encoder
from gircse_rag.qdrant.checksums import hash_vector, unit_vector
from gircse_rag.qdrant.foreign import read_payload
from gircse_rag.qdrant.limits import check_count, check_name
from gircse_rag.qdrant.points import Points, RefusedError, is_intact, make_vectors, read_pages, read_record
from gircse_rag.qdrant.retry import Retry
from gircse_rag.qdrant.schema import RECORD, ensure_collection
from gircse_rag.qdrant.stores import store_errors, store_name
from gircse_rag.tokens import encode, tokenizer_of

if TYPE_CHECKING:
    from gircse_rag.embedder import Embedder

_MAX_PASSES = 100


@dataclass(repr=False)
class MigrationReport:
    """The outcome of a migration.

    Attributes:
        points: number of points in the old collection, as of the last pass.
        embedded: points embedded and written by this run.
        unchanged: points already in the new collection, from an interrupted run.
        failed: id -> why the point could not be embedded or stored. The new collection lacks the point, or has what an
            earlier run wrote.
        extra: points of the new collection that are not in the old one.
        alias_moved: whether the alias now names the new collection. It is not moved if any point failed or is extra.
        prompt_tokens: tokens of the embedded points, including those that could not be stored.
    """

    points: int = 0
    embedded: int = 0
    unchanged: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    extra: int = 0
    alias_moved: bool = False
    prompt_tokens: int = 0

    __repr__ = summarize


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
    language: str | None = None,
) -> MigrationReport:
    """Embed the texts of collection `old` with another model into `new`, then point `alias` at `new`.

    Copies every point with a text, whoever wrote it, with its id and payload. `old` is not changed and can be searched
    meanwhile; further passes pick up points written to it in the meantime. `new` is created if it does not exist (use
    `create_collection` for custom settings); points already in it are not embedded again. A point that cannot be
    embedded, or that the store refuses, does not affect the others.

    Args:
        alias: moved in one request, so a search by alias always sees a complete collection; created if missing.
        batch_size: points read and embedded at once; they may be written in several requests.
        progress: called after every batch with the number of points done and the total.
        deadline: seconds after which a failing request to the store is no longer repeated.
        language: language of the texts, for the lexical vector of `new`. None takes that of `new`, else English.

    Raises:
        InputError: `old` and `new` are the same collection, `new` is an alias or has another language, or a name or
            number is invalid.
        SpecMismatchError: `new` was made with another model than the embedder's.
        StoreError: `old` does not exist, `alias` is the name of a collection, or the store does not answer.
    """
    check_count("batch_size", batch_size)
    if alias is not None:
        check_name(alias, "an alias")
    ask = Retry(store_name(client), deadline)
    with store_errors(client):
        names = {each.name for each in ask(client.get_collections).collections}
        aliases = {each.alias_name: each.collection_name for each in ask(client.get_aliases).aliases}
        if alias == new:
            raise InputError(f"the alias and the new collection are both called {new!r}; give them different names")
        source = aliases.get(old, old)
        if source == aliases.get(new, new):
            raise InputError(f"{old!r} and {new!r} are one collection; choose another name for the new one")
        if source not in names:
            raise StoreError(f"there is no collection {old!r} (there is: {', '.join(sorted(names)) or 'none'})")
        if alias in names:
            raise StoreError(f"{alias!r} is a collection, so Qdrant allows no alias of that name; choose another")
        if new in aliases:
            raise InputError(f"{new!r} is an alias, of {aliases[new]!r}; choose another name for the new collection")
        lexical = ask(ensure_collection, client, new, embedder.spec, language)
        return _Migration(source, new, embedder, client, ask, batch_size, progress, lexical).run(alias, aliases)


@dataclass
class _Migration:
    old: str
    new: str
    embedder: Embedder
    client: QdrantClient
    ask: Retry
    batch_size: int
    progress: Callable[[int, int], None] | None
    lexical: Bm25Encoder | None
    report: MigrationReport = field(default_factory=MigrationReport)
    common: int = 0  # points in both collections, as of the last pass

    def run(self, alias: str | None, aliases: dict[str, str]) -> MigrationReport:
        report = self.report
        total = self.ask(self.client.count, self.old).count
        for _ in range(_MAX_PASSES):
            if not self._run_pass(total):
                break
        else:
            raise StoreError(f"collection {self.old!r} keeps changing: stop writing to it and run again")
        report.extra = self.ask(self.client.count, self.new).count - self.common
        if alias is not None and not report.failed and not report.extra:
            create = models.CreateAlias(collection_name=self.new, alias_name=alias)
            change: list[models.AliasOperations] = [models.CreateAliasOperation(create_alias=create)]
            if alias in aliases:
                change.insert(0, models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias)))
            self.ask(self.client.update_collection_aliases, change)
            report.alias_moved = True
        return report

    def _run_pass(self, total: int) -> bool:
        """Go through the old collection once; return whether anything was written."""
        report, before = self.report, self.report.embedded
        report.points = report.unchanged = self.common = 0
        for page in read_pages(self.ask, self.client, self.old, self.batch_size, with_payload=True):
            report.points += len(page)
            stored = self.ask(self.client.retrieve, self.new, [point.id for point in page])
            in_new = {str(point.id): point.payload for point in stored}
            self.common += len(in_new)
            outdated = [point for point in page if not _is_copied(in_new.get(str(point.id)), point.payload)]
            report.unchanged += len(page) - len(outdated)
            self._embed([point for point in outdated if str(point.id) not in report.failed])
            if self.progress is not None:
                self.progress(min(report.points, total), total)
        report.unchanged -= before
        return report.embedded > before

    def _embed(self, points: list[models.Record]) -> None:
        report = self.report
        chosen, texts = [], []
        for point in points:
            text = read_payload(point.id, point.payload)[1]
            if (reason := self._find_problem(text)) is not None:
                report.failed[str(point.id)] = reason
            else:
                chosen.append(point)
                texts.append(text)
        if not chosen:
            return
        steps = self.embedder.spec.document_steps
        result = self.embedder.embed(texts, role="document", steps=steps, on_error="return")
        made = []
        for row, point in enumerate(chosen):
            if row in result.errors:
                report.failed[str(point.id)] = without_index(result.errors[row])
            else:
                vector = unit_vector(result.vectors[row])
                payload = _with_checksum(point.payload or {}, vector)
                vectors: Any = make_vectors(vector.tolist(), texts[row], self.lexical)
                made.append(models.PointStruct(id=point.id, vector=vectors, payload=payload))
                report.prompt_tokens += int(result.prompt_tokens[row])
        self._write(made)

    def _write(self, points: list[models.PointStruct]) -> None:
        """Write points. If the store refuses a batch, halve it until only the bad points are left out."""
        try:
            Points(self.client, self.new, self.ask).write(points)
        except RefusedError as error:
            if len(points) == 1:
                self.report.failed[str(points[0].id)] = str(error)
                return
            self._write(points[: len(points) // 2])
            self._write(points[len(points) // 2 :])
        else:
            self.report.embedded += len(points)

    def _find_problem(self, text: str) -> str | None:
        """Why a text cannot be embedded, or None if it can."""
        spec = self.embedder.spec
        if not text.strip():
            return "there is no text in its payload (page_content)"
        try:
            cut = encode(tokenizer_of(self.embedder), spec, text, role="document", instruction=None).truncated
        except InputError as error:
            return str(error)
        if cut:
            return (
                f"it is longer than the {spec.max_length} tokens that the new model reads; ingest its document into "
                "the new collection, which cuts it again"
            )
        return None


def _with_checksum(payload: dict[str, Any], vector: NDArray[np.float32]) -> dict[str, Any]:
    """The payload with the checksum of its new vector, (d,) float32. A damaged record stays as it is."""
    record = read_record(payload)
    if record is None or record.vector is None or not is_intact(record, payload):
        return payload
    return {**payload, RECORD: replace(record, vector=hash_vector(vector)).to_payload()}


def _is_copied(new: dict[str, Any] | None, old: dict[str, Any] | None) -> bool:
    """Whether a payload of the new collection is that of the old one, apart from the vector's checksum."""
    if new is None or old is None:
        return False
    return new == old or _without_vector_checksum(new) == _without_vector_checksum(old)


def _without_vector_checksum(payload: dict[str, Any]) -> dict[str, Any]:
    record = payload.get(RECORD)
    if not isinstance(record, dict):
        return payload
    return {**payload, RECORD: {name: value for name, value in record.items() if name not in ("vector", "check")}}
