"""The methods of `QdrantClient` that gircse and its integrations call, over a folder of shards.

    store/edge.json              {"aliases": {...}}; written atomically
    store/.lock                  one process at a time
    store/collections/NAME/      see `shard`

Settings that only a server has are refused, never ignored. `QdrantClient` passes all arguments by keyword.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import qdrant_edge as edge
from qdrant_client import models
from qdrant_client.client_base import QdrantBase
from qdrant_client.http.models import QueryResponse
from qdrant_client.local.payload_value_extractor import value_by_key

from gircse_rag.errors import StoreError
from gircse_rag.qdrant.durable import replace_text
from gircse_rag.qdrant.edge.conversion import (
    collection_info,
    from_edge_hit,
    from_edge_record,
    plain_id,
    query_request,
    refuse,
    selection,
    to_edge_filter,
    to_edge_point,
    to_edge_point_vectors,
)
from gircse_rag.qdrant.edge.shard import RESERVED, EdgeShard, engine_errors, remove
from gircse_rag.qdrant.folder_lock import lock_folder
from gircse_rag.qdrant.limits import check_name, is_valid_name

MARK = "edge.json"
"""The file that marks a folder as an edge store."""


class EdgeStore(QdrantBase):
    """The implementation behind `EdgeClient`, with qdrant_client's arguments and results.

    Methods raise StoreError. A new name that is not valid raises InputError; no collection has such a name, so none
    leads out of the folder.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self._collections = folder / "collections"
        self._collections.mkdir(parents=True, exist_ok=True)
        self._process_lock = lock_folder(folder, ".lock")
        if not (folder / MARK).exists():
            replace_text(folder / MARK, json.dumps({"aliases": {}}))
        self._aliases: dict[str, str] = json.loads((folder / MARK).read_text())["aliases"]
        self._shards: dict[str, EdgeShard] = {}
        self._lock = threading.RLock()

    def close(self, **kwargs: Any) -> None:
        """Close every shard and release the folder, even on errors; then raise the error."""
        with self._lock, ExitStack() as stack:
            stack.callback(self._process_lock.release)
            while self._shards:
                stack.callback(self._shards.popitem()[1].close)

    @contextmanager
    def _exclusive_access(self) -> Iterator[None]:
        """Serialize changes to collections and aliases; raise StoreError if the store is closed."""
        with self._lock:
            if not self._process_lock.is_locked:
                raise StoreError(f"the edge store in {self._folder} was closed; open it again")
            yield

    def shard(self, name: str) -> EdgeShard:
        """The collection with this name or alias, opened if necessary."""
        with self._exclusive_access():
            name = self._aliases.get(name, name)
            if name not in self._shards:
                if not self._exists(name):
                    raise StoreError(f"the edge store in {self._folder} has no collection {name!r}")
                self._shards[name] = EdgeShard(self._collections / name)
            return self._shards[name]

    def _exists(self, name: str) -> bool:
        return is_valid_name(name) and (self._collections / name / "current").exists()

    # Collections and aliases

    def collection_exists(self, collection_name: str, **kwargs: Any) -> bool:
        return self._exists(self._aliases.get(collection_name, collection_name))

    def get_collections(self, **kwargs: Any) -> models.CollectionsResponse:
        names = sorted(current.parent.name for current in self._collections.glob("*/current"))
        return models.CollectionsResponse(collections=[models.CollectionDescription(name=name) for name in names])

    def get_collection(self, collection_name: str, **kwargs: Any) -> models.CollectionInfo:
        shard = self.shard(collection_name)
        with shard.engine() as engine:
            return collection_info(shard.about, engine.info())

    def create_collection(
        self,
        collection_name: str,
        vectors_config: Any = None,
        sparse_vectors_config: Any = None,
        metadata: Any = None,
        **kwargs: Any,
    ) -> bool:
        refuse(kwargs)
        check_name(collection_name)
        if not isinstance(vectors_config, Mapping):
            raise StoreError("an edge store takes named vectors")
        for params in vectors_config.values():
            refuse({name: value for name, value in params if name not in ("size", "distance")})
        for params in (sparse_vectors_config or {}).values():
            refuse({name: value for name, value in params if name != "modifier"})
        about = {
            "metadata": metadata or {},
            "vectors": {name: [params.size, params.distance.value] for name, params in vectors_config.items()},
            "sparse_vectors": {
                name: params.modifier == models.Modifier.IDF for name, params in (sparse_vectors_config or {}).items()
            },
        }
        with self._exclusive_access():
            if self.collection_exists(collection_name):
                raise StoreError(f"collection {collection_name!r} already exists; choose another name")
            self._shards[collection_name] = EdgeShard.create(self._collections / collection_name, about)
        return True

    def update_collection(self, collection_name: str, metadata: Any = None, **kwargs: Any) -> bool:
        refuse(kwargs)
        shard = self.shard(collection_name)
        with shard.engine():  # no other change between reading and writing
            merged = {**shard.about["metadata"], **(metadata or {})}
            shard.write(edge.UpdateOperation.set_payload([RESERVED], {"metadata": merged}))
        return True

    def create_vector_name(
        self, collection_name: str, vector_name: str, vector_name_config: models.VectorNameConfig, **kwargs: Any
    ) -> models.UpdateResult:
        refuse(kwargs)
        if not isinstance(vector_name_config, models.SparseVectorNameConfig):
            raise StoreError("an edge store cannot add a dense vector to a collection; ingest into a new one")
        refuse({name: value for name, value in vector_name_config.sparse if name != "modifier"})
        idf = vector_name_config.sparse.modifier == models.Modifier.IDF
        shard = self.shard(collection_name)
        with shard.engine():  # no other change between reading and writing
            modifier = edge.Modifier.Idf if idf else None
            result = shard.write(edge.UpdateOperation.create_sparse_vector(vector_name, modifier))
            sparse_vectors = {**shard.about.get("sparse_vectors", {}), vector_name: idf}
            shard.write(edge.UpdateOperation.set_payload([RESERVED], {"sparse_vectors": sparse_vectors}))
        return result

    def delete_collection(self, collection_name: str, **kwargs: Any) -> bool:
        with self._exclusive_access():
            if not self._exists(collection_name):
                return False
            aliases = {alias: name for alias, name in self._aliases.items() if name != collection_name}
            if aliases != self._aliases:
                self._save(aliases)
            if (shard := self._shards.pop(collection_name, None)) is not None:
                shard.delete()
            else:
                remove(self._collections / collection_name)
        return True

    def get_aliases(self, **kwargs: Any) -> models.CollectionsAliasesResponse:
        pairs = [models.AliasDescription(alias_name=a, collection_name=name) for a, name in self._aliases.items()]
        return models.CollectionsAliasesResponse(aliases=pairs)

    def update_collection_aliases(
        self, change_aliases_operations: Sequence[models.AliasOperations], **kwargs: Any
    ) -> bool:
        """Apply all operations, or none if one is refused or the process is killed."""
        with self._exclusive_access():
            self._save(self._apply(change_aliases_operations))
        return True

    def _apply(self, operations: Sequence[models.AliasOperations]) -> dict[str, str]:
        aliases = dict(self._aliases)
        for operation in operations:
            if isinstance(operation, models.DeleteAliasOperation):
                aliases.pop(operation.delete_alias.alias_name, None)
                continue
            if not isinstance(operation, models.CreateAliasOperation):
                raise StoreError("an edge store cannot rename aliases; delete the alias and create another")
            alias = operation.create_alias
            check_name(alias.alias_name, "an alias")
            if not self._exists(alias.collection_name):
                raise StoreError(f"there is no collection {alias.collection_name!r} for the alias {alias.alias_name!r}")
            if self._exists(alias.alias_name):
                raise StoreError(f"{alias.alias_name!r} is a collection; choose another alias")
            aliases[alias.alias_name] = alias.collection_name
        return aliases

    def _save(self, aliases: dict[str, str]) -> None:
        with engine_errors(self._folder):
            replace_text(self._folder / MARK, json.dumps({"aliases": aliases}))
        self._aliases = aliases

    # Writes

    def upsert(self, collection_name: str, points: Any, **kwargs: Any) -> models.UpdateResult:
        refuse(kwargs)
        if not isinstance(points, Sequence):
            raise StoreError(f"an edge store takes a list of points, not {type(points).__name__}")
        converted = [to_edge_point(point) for point in points]
        return self.shard(collection_name).write(edge.UpdateOperation.upsert_points(converted), len(converted))

    def upload_points(
        self, collection_name: str, points: Iterable[models.PointStruct], batch_size: int = 64, **kwargs: Any
    ) -> None:
        refuse(kwargs)
        rest = iter(points)
        while batch := list(islice(rest, batch_size)):
            self.upsert(collection_name, batch)

    def update_vectors(
        self, collection_name: str, points: Sequence[models.PointVectors], **kwargs: Any
    ) -> models.UpdateResult:
        refuse(kwargs)
        converted = [to_edge_point_vectors(point) for point in points]
        return self.shard(collection_name).write(edge.UpdateOperation.update_vectors(converted), len(converted))

    def set_payload(  # type: ignore[override]
        self, collection_name: str, payload: Any, points: Any, **kwargs: Any
    ) -> models.UpdateResult:
        refuse(kwargs)
        if not isinstance(points, Sequence):
            raise StoreError(f"an edge store takes a list of ids, not {type(points).__name__}")
        return self.shard(collection_name).write(edge.UpdateOperation.set_payload(list(points), payload))

    def delete(self, collection_name: str, points_selector: Any, **kwargs: Any) -> models.UpdateResult:
        refuse(kwargs)
        selector = getattr(points_selector, "filter", points_selector)
        if isinstance(selector, models.Filter):
            operation = edge.UpdateOperation.delete_points_by_filter(to_edge_filter(selector, hidden=RESERVED))
        else:
            operation = edge.UpdateOperation.delete_points(_without_reserved(getattr(selector, "points", selector)))
        return self.shard(collection_name).write(operation)

    def create_payload_index(  # type: ignore[override]
        self, collection_name: str, field_name: str, field_schema: Any = None, **kwargs: Any
    ) -> models.UpdateResult:
        refuse(kwargs)
        kind = getattr(edge.PayloadSchemaType, str(getattr(field_schema, "value", field_schema)).capitalize(), None)
        if kind is None:
            raise StoreError(
                f"an edge store takes a plain kind of payload index, such as keyword, not {field_schema!r}"
            )
        return self.shard(collection_name).write(edge.UpdateOperation.create_field_index(field_name, kind))

    # Reads

    def retrieve(
        self, collection_name: str, ids: Any, with_payload: Any = True, with_vectors: Any = False, **kwargs: Any
    ) -> list[models.Record]:
        refuse(kwargs)
        with self.shard(collection_name).engine() as engine:
            records = engine.retrieve(_without_reserved(ids), selection(with_payload), with_vectors)
        return [from_edge_record(point) for point in records]

    def scroll(  # type: ignore[override]
        self,
        collection_name: str,
        scroll_filter: models.Filter | None = None,
        limit: int = 10,
        offset: Any = None,
        with_payload: Any = True,
        with_vectors: Any = False,
        **kwargs: Any,
    ) -> tuple[list[models.Record], int | str | None]:
        refuse(kwargs)
        request = edge.ScrollRequest(
            offset=offset,
            limit=limit,
            filter=to_edge_filter(scroll_filter, hidden=RESERVED),
            with_payload=selection(with_payload),
            with_vector=with_vectors,
        )
        with self.shard(collection_name).engine() as engine:
            records, following = engine.scroll(request)
        return [from_edge_record(point) for point in records], None if following is None else plain_id(following)

    def count(self, collection_name: str, count_filter: Any = None, exact: bool = True, **kwargs: Any) -> Any:
        refuse(kwargs)
        request = edge.CountRequest(exact=exact, filter=to_edge_filter(count_filter, hidden=RESERVED))
        with self.shard(collection_name).engine() as engine:
            return models.CountResult(count=engine.count(request))

    def query_points(self, collection_name: str, query: Any = None, **kwargs: Any) -> QueryResponse:  # type: ignore[override]
        return self._query(collection_name, [query_request(query, **kwargs)])[0]

    def query_batch_points(
        self, collection_name: str, requests: Sequence[models.QueryRequest], **kwargs: Any
    ) -> list[QueryResponse]:
        refuse(kwargs)
        return self._query(collection_name, [query_request(**_to_arguments(request)) for request in requests])

    def _query(self, collection_name: str, requests: list[edge.QueryRequest]) -> list[QueryResponse]:
        with self.shard(collection_name).engine() as engine:
            answers = engine.query_batch(edge.QueryBatchRequest(requests))
        return [QueryResponse(points=[from_edge_hit(point) for point in answer]) for answer in answers]

    def query_points_groups(  # type: ignore[override]
        self,
        collection_name: str,
        group_by: str,
        query: Any = None,
        limit: int = 10,
        group_size: int = 3,
        **kwargs: Any,
    ) -> models.GroupsResult:
        """Group the best points, fetching more until there are enough groups; the engine has no grouping.

        As on a server, a group may lack hits that rank far down."""
        fetched = limit * group_size
        while True:
            fetched *= 4
            points = self.query_points(collection_name, query, limit=fetched, **kwargs).points
            groups: dict[Any, list[models.ScoredPoint]] = {}
            for point in points:
                for value in value_by_key(point.payload or {}, group_by) or []:
                    groups.setdefault(value, []).append(point)
            best = dict(list(groups.items())[:limit])
            full = len(best) == limit
            if len(points) < fetched or (full and (fetched > 1000 or all(len(g) >= group_size for g in best.values()))):
                return models.GroupsResult(
                    groups=[models.PointGroup(id=value, hits=hits[:group_size]) for value, hits in best.items()]
                )


def _without_reserved(ids: Any) -> list[Any]:
    return [point for point in ids if str(point) != RESERVED]


def _to_arguments(request: models.QueryRequest) -> dict[str, Any]:
    """The fields of a request, under the argument names of `query_points`."""
    names = {"filter": "query_filter", "with_vector": "with_vectors", "params": "search_params"}
    return {names.get(name, name): value for name, value in request if value is not None}
