"""An embedded store with an HNSW index: Qdrant's engine (qdrant-edge-py, beta) behind `QdrantClient`.

    client = open_client("./store", engine="edge")
    ingest(documents, collection="docs", embedder=embedder, client=client)
    client.build_index("docs")

`conversion` converts models, `shard` is one collection, `store` a folder of collections, `edge_client` the client.
"""

from gircse_rag.errors import require

require("qdrant_edge", "edge")

from gircse_rag.qdrant.edge.edge_client import EdgeClient  # noqa: E402  needs the extra

__all__ = ["EdgeClient"]
