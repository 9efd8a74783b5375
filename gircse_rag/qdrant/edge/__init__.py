"""An embedded store with a real index: Qdrant's own engine (qdrant-edge-py, beta), behind `QdrantClient`.

    client = open_client("./store", engine="edge")
    ingest(documents, collection="docs", embedder=embedder, client=client)
    client.build_index("docs")

`conversion` speaks both libraries' models, `shard` is one collection, `store` a folder of them, `client` its face.
"""

from gircse_rag.errors import require

require("qdrant_edge", "edge")

from gircse_rag.qdrant.edge.edge_client import EdgeClient  # noqa: E402  it needs the extra

__all__ = ["EdgeClient"]
