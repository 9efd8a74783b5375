"""`EdgeClient`: a QdrantClient whose store is a folder of edge shards."""

from __future__ import annotations

from pathlib import Path

from qdrant_client import QdrantClient

from gircse_rag.qdrant.edge.store import EdgeStore


class EdgeClient(QdrantClient):
    """A `QdrantClient` over a folder of edge shards. Safe to use from several threads; one process at a time.

    It has what gircse calls: collections, aliases and payload indexes; upsert, upload_points, set_payload, delete;
    retrieve, scroll, count; query_points, its batch and its groups. Anything else raises NotImplementedError, and a
    setting that only a server has StoreError.
    """

    def __init__(self, path: str | Path) -> None:
        """Open the store in a folder; make it if there is none.

        Raises:
            StoreError: another client has it open, or it cannot be read.
        """
        super().__init__(":memory:")
        self._store = EdgeStore(Path(path))
        self._client = self._store
        self._init_options = {"path": str(path)}

    def build_index(self, collection: str) -> bool:
        """Index what was written since the last time; whether the index grew.

        Few points (4,000 of 576 dimensions, 10 MB) need none. The engine's `optimize` holds Python's interpreter lock
        from beginning to end, so it runs in a child process, on a copy of the shard: twice the disk space while it
        lasts, and searches go on meanwhile. A write makes the copy stale and it is dropped (False): call this when an
        ingest is done. Killed at any moment, the collection is as it was.

        Raises:
            StoreError: no such collection, or the child failed; the collection is as it was.
        """
        return self._store.shard(collection).build_index()
