"""Delete documents of a collection by their ids: `delete_documents`."""

from __future__ import annotations

from collections.abc import Iterable

from qdrant_client import QdrantClient

from gircse_rag.backoff import DEADLINE
from gircse_rag.errors import InputError
from gircse_rag.qdrant.limits import check_name
from gircse_rag.qdrant.points import Points, Record, point_id
from gircse_rag.qdrant.retry import Retry
from gircse_rag.qdrant.stores import store_errors, store_name


def delete_documents(
    ids: Iterable[str], *, collection: str, client: QdrantClient, deadline: float = DEADLINE
) -> list[str]:
    """Delete documents that `ingest` wrote. Returns the ids that the collection had, in order.

    Args:
        deadline: seconds for which failing requests to the store are retried, where that helps.

    Raises:
        InputError: `ids` is one string, or Qdrant does not allow the collection's name.
        StoreError: the collection does not exist, or the store does not confirm before the deadline. Run again.
    """
    if isinstance(ids, str):
        raise InputError("ids is a single string; pass a list of them: [id]")
    check_name(collection)
    wanted = list(dict.fromkeys(ids))
    with store_errors(client):
        points = Points(client, collection, Retry(store_name(client), deadline))
        heads = points.read(point_id(document, 0) for document in wanted)
        found = [document for document in wanted if point_id(document, 0) in heads]
        for document in found:
            delete_document(points, heads[point_id(document, 0)].record)
    return found


def delete_document(points: Points, head: Record) -> int:
    """Delete all points of a document; returns their number. Chunk 0 goes last: it tells where the others are.

    Args:
        head: the record of chunk 0.
    """
    reach = max(head.reach, head.chunks)
    return sum(
        len(points.delete(point_id(head.document, position) for position in positions))
        for positions in (range(1, reach), range(1))
    )
