"""`EdgeClient`: a `QdrantClient` whose store is a folder of edge shards."""

from __future__ import annotations

from pathlib import Path

from qdrant_client import QdrantClient

from gircse_rag.qdrant.edge.store import EdgeStore


class EdgeClient(QdrantClient):
    """A `QdrantClient` over a folder of edge shards. Thread-safe; one process at a time.

    Supports the methods that gircse calls: collections, aliases and payload indexes; upsert, upload_points,
    set_payload, delete; retrieve, scroll, count; query_points, query_batch_points, query_points_groups. Other methods
    raise NotImplementedError. Settings that only a server has raise StoreError.
    """

    def __init__(self, path: str | Path) -> None:
        """Open the store in a folder, or create it.

        Raises:
            StoreError: another client has the store open, or it cannot be read.
        """
        super().__init__(":memory:")
        self._store = EdgeStore(Path(path))
        self._client = self._store
        self._init_options = {"path": str(path)}

    def build_index(self, collection: str) -> bool:
        """Index the points written since the last call; return whether the index grew.

        Up to 10 MB of vectors (4,000 points of 576 dimensions) are searched without an index. The engine's `optimize`
        holds the GIL throughout, so it runs in a child process on a copy of the shard. Searches continue meanwhile; the
        copy doubles the disk space. Any write in the meantime makes the copy stale, and it is discarded (False): call
        this after an ingest. If either process is killed, the collection is unchanged.

        Raises:
            StoreError: the collection does not exist, or the child failed; the collection is unchanged.
        """
        return self._store.shard(collection).build_index()
