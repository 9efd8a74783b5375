"""Give a collection of an earlier version its lexical vector: `add_lexical`.

    1. create the sparse vector "bm25"         the collection is searched as before
    2. encode the stored texts, page by page   points that have the vector are not read again
    3. record its settings in the metadata     from here on ingests write it and searches use it
    4. step 2 again                            for points that an ingest wrote during step 2

No other state is kept. If the process is killed, the same call continues with the points that lack the vector.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import UnexpectedResponse

from gircse_rag.backoff import DEADLINE
from gircse_rag.errors import StoreError
from gircse_rag.lexical import DEFAULT_LANGUAGE, Bm25Encoder
from gircse_rag.qdrant.foreign import read_payload
from gircse_rag.qdrant.lexical import LEXICAL, check_language, encoder_of, lexical_metadata, to_sparse
from gircse_rag.qdrant.points import read_pages
from gircse_rag.qdrant.retry import Retry
from gircse_rag.qdrant.schema import RECORD, read_stamp
from gircse_rag.qdrant.stores import store_errors, store_name

_POINTS_PER_REQUEST = 256
_TEXT_FIELDS = ["page_content", "_node_content"]


@dataclass
class LexicalReport:
    """The outcome of `add_lexical`.

    Attributes:
        points: number of points in the collection.
        encoded: points that got a lexical vector in this run.
        without_terms: points whose text has no term; they have no lexical vector.
    """

    points: int = 0
    encoded: int = 0
    without_terms: int = 0


def add_lexical(
    collection: str,
    *,
    client: QdrantClient,
    language: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    deadline: float = DEADLINE,
) -> LexicalReport:
    """Add the lexical vector to a collection, from its stored texts. Nothing is embedded.

    The collection can be searched and written meanwhile. Points that have the vector are left alone, so a repeated call
    encodes only what is missing.

    Args:
        language: language of the texts (`gircse_rag.lexical.LANGUAGES`). None: the collection's, else English.
        progress: called after every page with the number of points done and the total.
        deadline: seconds after which a failing request to the store is no longer repeated.

    Raises:
        InputError: the language is unknown, or the collection has a lexical vector in another language.
        StoreError: the collection does not exist or was not made by gircse, its server is older than Qdrant 1.18, or
            the store does not answer.
    """
    ask = Retry(store_name(client), deadline)
    with store_errors(client):
        info, _, _ = ask(read_stamp, client, collection)
        config, stamp = info.config, (info.config.metadata or {})[RECORD]
        encoder = encoder_of(collection, config, stamp)
        if encoder is not None:
            check_language(collection, language, encoder)
        encoder = encoder or Bm25Encoder(language or DEFAULT_LANGUAGE)
        if LEXICAL not in (config.params.sparse_vectors or {}):
            _create_vector(client, collection, ask)
        report = LexicalReport(points=ask(client.count, collection).count)
        _encode_missing(client, collection, encoder, ask, report, progress)
        stamp = {**stamp, **lexical_metadata(encoder.language)}
        ask(client.update_collection, collection, metadata={RECORD: stamp})
        report.without_terms = 0
        _encode_missing(client, collection, encoder, ask, report, None)
    return report


def _create_vector(client: QdrantClient, collection: str, ask: Retry) -> None:
    settings = models.SparseVectorNameConfig(sparse=models.SparseVectorConfig(modifier=models.Modifier.IDF))
    try:
        ask(client.create_vector_name, collection, LEXICAL, settings)
    except UnexpectedResponse as error:
        if error.status_code not in (404, 405):
            raise
        raise StoreError(
            f"this Qdrant server cannot add a vector to collection {collection!r}, as Qdrant 1.18 and later can; "
            f"upgrade it, or embed the texts again into a new collection: gircse migrate {collection} NEW"
        ) from error


def _encode_missing(
    client: QdrantClient,
    collection: str,
    encoder: Bm25Encoder,
    ask: Retry,
    report: LexicalReport,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Encode the points that have no lexical vector."""
    missing = models.Filter(must_not=[models.HasVectorCondition(has_vector=LEXICAL)])
    options: dict[str, Any] = {"scroll_filter": missing, "with_payload": _TEXT_FIELDS}
    done = report.points - ask(client.count, collection, count_filter=missing).count
    for page in read_pages(ask, client, collection, _POINTS_PER_REQUEST, **options):
        weights = {point.id: encoder.encode_document(read_payload(point.id, point.payload)[1]) for point in page}
        points = [
            models.PointVectors(id=point, vector={LEXICAL: to_sparse(found)})
            for point, found in weights.items()
            if found
        ]
        if points:
            ask(client.update_vectors, collection, points, wait=True)
        report.encoded += len(points)
        report.without_terms += len(page) - len(points)
        done += len(page)
        if progress is not None:
            progress(min(done, report.points), report.points)
