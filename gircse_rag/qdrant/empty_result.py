"""Say why a search found nothing: `explain_empty`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from qdrant_client import QdrantClient, models
from qdrant_client.local.payload_value_extractor import value_by_key

from gircse_rag.errors import plural
from gircse_rag.qdrant.filters import Filter, as_filter, field_path, is_empty
from gircse_rag.qdrant.search import search
from gircse_rag.qdrant.stores import store_errors

if TYPE_CHECKING:
    from gircse_rag.embedder import Embedder

_SAMPLE = 200
"""Chunks that are read for the keys and values to name."""
_NAMED = 5


def explain_empty(
    question: str,
    *,
    collection: str,
    embedder: Embedder,
    client: QdrantClient,
    query_filter: Filter | None = None,
    min_score: float | None = None,
    **options: Any,
) -> str | None:
    """Say why `search` with these arguments found nothing. Call it only then: it counts, and searches again.

    Returns:
        One sentence: no key of that name, or no chunk with that value (with keys and values that exist), all scores
        below `min_score` (with the best score), an `offset` behind the last hit, no common word (mode "lexical"), or an
        empty collection. None if the reason is another.

    Raises:
        InputError, SpecMismatchError, StoreError: as `search`.
    """
    with store_errors(client):
        schema = client.get_collection(collection).payload_schema
        matching = client.count(collection, count_filter=as_filter(query_filter, schema)).count
        if not matching and not client.count(collection).count:
            return f"collection {collection!r} is empty; ingest documents first"
        if not matching:
            return _explain_filter(client, collection, query_filter, schema)
        what = plural(matching, "chunk") + (" behind the filter" if query_filter else "")
        if min_score is not None:
            target: dict[str, Any] = {"collection": collection, "embedder": embedder, "client": client}
            target |= {name: options.get(name) for name in ("instruction", "steps")}
            target["mode"] = "lexical" if options.get("mode") == "lexical" else "dense"  # whose score is compared
            best = search(question, **target, limit=1, query_filter=query_filter)
            if best and best[0].score < min_score:
                return f"{what}: all score below {min_score:g}; the best has {best[0].score:.4f}"
        if offset := options.get("offset"):
            return f"the offset {offset} skips every hit ({what})"
        if options.get("mode") == "lexical":
            return f"{what}: none has a word of the question; ask with other words, or search in mode hybrid or dense"
    return None


def _explain_filter(
    client: QdrantClient, collection: str, query_filter: Filter | None, schema: Mapping[str, models.PayloadIndexInfo]
) -> str:
    """Why no chunk matches the filter."""
    if not isinstance(query_filter, Mapping):
        return "no chunk matches the filter"
    for key, value in query_filter.items():
        if client.count(collection, count_filter=as_filter({key: value}, schema)).count:
            continue
        has_key = models.Filter(must_not=[is_empty(key)])
        if not client.count(collection, count_filter=has_key).count:
            keys = _common(list(payload["metadata"]) for payload in _sample(client, collection, None))
            return f"no document has the key {key!r}; keys there: {', '.join(keys) or 'none'}"
        payloads = _sample(client, collection, has_key)
        groups = [value_by_key(payload, field_path(key)) or [] for payload in payloads]
        reason = f"no document has {key} = {value!r}; values there: "
        reason += ", ".join(_common([repr(each) for each in values] for values in groups))
        if _is_number_range(value) and all(isinstance(each, str) for values in groups for each in values):
            reason += " (strings, which no range of numbers finds; ingest them as numbers, from .jsonl or .parquet)"
        return reason
    return f"each condition matches some documents, but none matches all {len(query_filter)} of them"


def _is_number_range(value: object) -> bool:
    return isinstance(value, Mapping) and any(isinstance(bound, int | float) for bound in value.values())


def _sample(client: QdrantClient, collection: str, condition: models.Filter | None) -> list[dict[str, Any]]:
    points, _ = client.scroll(collection, scroll_filter=condition, limit=_SAMPLE, with_payload=["metadata"])
    return [{"metadata": {}, **(point.payload or {})} for point in points]


def _common(groups: Iterable[list[str]]) -> list[str]:
    """The most common names, at most five, then "..."."""
    counts = Counter(name for group in groups for name in group if name != "_chunk")
    names = [name for name, _ in counts.most_common(_NAMED)]
    return [*names, "..."] if len(counts) > _NAMED else names
