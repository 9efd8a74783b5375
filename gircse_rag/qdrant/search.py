"""Search a collection with one question (`search`) or several (`search_batch`).

hybrid    dense and lexical rankings, fused (`gircse_rag.lexical.fusion`); the default
dense     cosine similarity of the embeddings
lexical   BM25: the words that question and chunk share
"""

from __future__ import annotations

import math
import reprlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from qdrant_client import QdrantClient
from qdrant_client.models import SparseVector

from gircse_rag.errors import GircseWarning, InputError
from gircse_rag.lexical import Bm25Encoder
from gircse_rag.qdrant.filters import Filter, as_filter
from gircse_rag.qdrant.foreign import read_payload
from gircse_rag.qdrant.lexical import Mode, choose_mode
from gircse_rag.qdrant.limits import check_count
from gircse_rag.qdrant.points import read_record
from gircse_rag.qdrant.queries import Options, Question, Ranked, find_terms
from gircse_rag.qdrant.ranking import rank_points
from gircse_rag.qdrant.schema import read_collection
from gircse_rag.qdrant.stores import store_errors
from gircse_rag.tokens import check_text

if TYPE_CHECKING:
    from gircse_rag.embedder import Embedder


@dataclass(frozen=True, repr=False)
class Hit:
    """A chunk found by a search.

    Attributes:
        id: id of the point in Qdrant.
        score: what the hits are ranked by. Mode "dense": cosine similarity, in [-1, 1]. Mode "lexical": BM25, above 0.
            Mode "hybrid": the fused score, in [0, 1]; it compares the hits of one question, not those of different
            questions.
        text: text of the chunk.
        metadata: metadata of the document, with `source` (the document's id, unless the document sets it) and `_chunk`:
            number, chunks, start, end, headings, and the page if there are pages.
        document: id of the document; None for points written by other tools.
        dense_rank, lexical_rank: place in the dense and in the lexical ranking, from 1. None where the mode has no such
            ranking, where the hit is not among its best (hybrid: 100), and with `mmr`, or with `group_size` outside
            hybrid mode.
    """

    id: str
    score: float
    text: str
    metadata: dict[str, Any]
    document: str | None
    dense_rank: int | None = None
    lexical_rank: int | None = None

    def __repr__(self) -> str:
        return f"Hit({self.score:.4f}, {self.document!r}, {reprlib.repr(' '.join(self.text.split()))})"


def search(
    question: str,
    *,
    collection: str,
    embedder: Embedder,
    client: QdrantClient,
    instruction: str | None = None,
    limit: int = 5,
    offset: int = 0,
    steps: int | Literal["auto"] | None = None,
    query_filter: Filter | None = None,
    min_score: float | None = None,
    group_size: int | None = None,
    mmr: float | None = None,
    mode: Mode | None = None,
) -> list[Hit]:
    """Find the chunks that answer a question best under an instruction, best first.

    Args:
        instruction: says what makes a chunk a good answer; the spec's default if None. Mode "lexical" ignores it.
        limit: maximum number of hits, or of documents if `group_size` is given.
        offset: number of best hits to skip, for paging.
        steps: refinement steps of the question; None uses those of the documents. Any other number works too, but the
            embedder warns (GircseWarning).
        query_filter: metadata keys and their required values, whatever their types (2020 also finds "2020"), or a
            Qdrant filter: see `as_filter`.
        min_score: minimum cosine similarity, also in hybrid mode, whose `score` is another number. In mode "lexical":
            minimum BM25 score.
        group_size: maximum number of hits per document. Hits are then grouped by document, best document first. Points
            written by other tools have no document and are skipped.
        mmr: weight of diversity against similarity, 0 to 1 (maximal marginal relevance, Carbonell and Goldstein, 1998).
            Chooses among the best `10 * (limit + offset)` chunks; hits come in order of choice. Not in mode "lexical".
        mode: "hybrid", "dense" or "lexical". None means hybrid, or dense if the collection has no lexical vector
            (GircseWarning). In mode "lexical", a question without any term (only stop words or signs) has no hits
            (GircseWarning); in hybrid mode the dense ranking alone answers it.

    Raises:
        InputError: the question is empty or not a string, or an argument is invalid.
        SpecMismatchError: the collection was made with another model or spec; the message names both.
        StoreError: the collection does not exist, was not made by gircse or lacks the lexical vector that `mode` needs;
            or the server does not answer.
    """
    (hits,) = search_batch(
        [question],
        collection=collection,
        embedder=embedder,
        client=client,
        instruction=instruction,
        limit=limit,
        offset=offset,
        steps=steps,
        query_filter=query_filter,
        min_score=min_score,
        group_size=group_size,
        mmr=mmr,
        mode=mode,
    )
    return hits


def search_batch(
    questions: Sequence[str],
    *,
    collection: str,
    embedder: Embedder,
    client: QdrantClient,
    instruction: str | None = None,
    limit: int = 5,
    offset: int = 0,
    steps: int | Literal["auto"] | None = None,
    query_filter: Filter | None = None,
    min_score: float | None = None,
    group_size: int | None = None,
    mmr: float | None = None,
    mode: Mode | None = None,
) -> list[list[Hit]]:
    """Run `search` for several questions, batched: one list of hits per question, in order.

    Raises:
        InputError: as `search`; `index` says which question. No search was made.
        SpecMismatchError, StoreError: as `search`.
    """
    check_options(limit, offset, min_score, group_size, mmr, mode)
    as_filter(query_filter)  # a fault of the filter is reported without a server
    with store_errors(client):
        info, encoder = read_collection(client, collection, embedder.spec)
        condition = as_filter(query_filter, info.payload_schema)
        options = Options(limit, offset, condition, min_score, group_size, mmr)
        mode = choose_mode(mode, encoder, client, collection)
        terms = [None] * len(questions) if encoder is None or mode == "dense" else _find_terms(encoder, questions, mode)
        vectors: list[Any] = [None] * len(questions)
        if mode != "lexical":
            vectors = embedder.embed(questions, role="query", instruction=instruction, steps=steps).vectors.tolist()
        ranked = rank_points(client, collection, [*map(Question, vectors, terms)], mode, options)
    return [[to_hit(each) for each in hits] for hits in ranked]


def _find_terms(encoder: Bm25Encoder, questions: Sequence[str], mode: Mode) -> list[SparseVector | None]:
    """The lexical vector of each question; None if no word of it is a term, which warns if nothing else can answer."""
    found = []
    for index, question in enumerate(questions):
        found.append(find_terms(encoder, check_text(question, index)))
        if found[-1] is None and mode == "lexical":
            warnings.warn(
                f"text {index} ({question[:80]!r}) has no words except {encoder.language} stop words, so it has no "
                "hits; ask with other words, or search in mode hybrid or dense",
                GircseWarning,
                stacklevel=4,
            )
    return found


def check_options(
    limit: int,
    offset: int,
    min_score: float | None,
    group_size: int | None,
    mmr: float | None,
    mode: str | None,
) -> None:
    group = 1 if group_size is None else group_size
    for name, value, least in (("limit", limit, 1), ("offset", offset, 0), ("group_size", group, 1)):
        check_count(name, value, least)
    for name, share, lowest in (("min_score", min_score, -1), ("mmr", mmr, 0)):
        most = math.inf if mode == "lexical" and name == "min_score" else 1
        if share is not None and (not isinstance(share, int | float) or not lowest <= share <= most):
            raise InputError(f"{name} must be a number from {lowest} to {most}, not {share!r}")
    if group_size is not None and (offset or mmr is not None):
        raise InputError(
            "group_size cannot be combined with offset or mmr: Qdrant supports neither for groups; give one of them"
        )
    if mmr is not None and mode == "lexical":
        raise InputError("mmr compares embeddings, which the mode lexical does not use; choose mode hybrid or dense")


def to_hit(ranked: Ranked) -> Hit:
    """A ranked point as callers see it."""
    point = ranked.point
    _, text, metadata = read_payload(point.id, point.payload)
    record = read_record(point.payload)
    document = None if record is None else record.document
    return Hit(str(point.id), ranked.score, text, metadata, document, ranked.dense_rank, ranked.lexical_rank)
