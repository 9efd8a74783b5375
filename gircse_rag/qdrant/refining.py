"""Search after one refinement step and again after all (`search_coarse_to_fine`), and what such searches share."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from qdrant_client import QdrantClient
from qdrant_client.models import SparseVector

from gircse_rag.errors import GircseWarning, InputError
from gircse_rag.qdrant.candidates import find_candidates
from gircse_rag.qdrant.filters import Filter, as_filter
from gircse_rag.qdrant.lexical import Mode, choose_mode
from gircse_rag.qdrant.queries import Options, Question, find_terms
from gircse_rag.qdrant.schema import read_collection
from gircse_rag.qdrant.search import Hit, check_options, to_hit
from gircse_rag.qdrant.stores import store_errors
from gircse_rag.tokens import check_text

if TYPE_CHECKING:
    from gircse_rag.embedder import Embedder
    from gircse_rag.result import EmbeddingResult


def search_coarse_to_fine(
    question: str,
    *,
    collection: str,
    embedder: Embedder,
    client: QdrantClient,
    instruction: str | None = None,
    limit: int = 5,
    query_filter: Filter | None = None,
    steps: int | None = None,
    candidates: int = 50,
    mode: Mode | None = None,
) -> Iterator[list[Hit]]:
    """Yield a quick answer, then a refined one: two lists of at most `limit` hits, best first.

    The first list uses the question after one refinement step. The second list refines the question to `steps` (None:
    the spec's K) and ranks the candidates of the first search again, without another search: the best `candidates` of
    each ranking that the mode uses. It is computed only when requested, so a caller who stops after the first list
    pays only for that.

    Raises (when the first list is requested):
        InputError, SpecMismatchError, StoreError: as `search`.
    """
    check_refinable(limit, mode, query_filter)
    if isinstance(candidates, bool) or not isinstance(candidates, int) or candidates < limit:
        raise InputError(f"candidates must be an integer of at least limit ({limit}), not {candidates!r}")
    with store_errors(client):
        terms, _, options = prepare_refinement(client, collection, embedder, question, limit, mode, query_filter)
        (coarse,) = embed_question(embedder, question, instruction, 1).vectors
        found = find_candidates(client, collection, Question(coarse.tolist(), terms), candidates, options)
    yield [to_hit(each) for each in found.rank(coarse)[:limit]]
    (fine,) = embed_question(embedder, question, instruction, steps).vectors
    yield [to_hit(each) for each in found.rank(fine)[:limit]]


def check_refinable(limit: int, mode: str | None, query_filter: Filter | None) -> None:
    """Check the arguments of a search that ranks one question after several refinement steps, without a server.

    Raises:
        InputError: an argument is invalid, or refinement does not change the ranking of the mode.
    """
    check_options(limit, 0, None, None, None, mode)
    if mode == "lexical":
        raise InputError("refinement steps do not change the lexical ranking; choose mode hybrid or dense")
    as_filter(query_filter)


def prepare_refinement(
    client: QdrantClient,
    collection: str,
    embedder: Embedder,
    question: str,
    limit: int,
    mode: Mode | None,
    query_filter: Filter | None,
) -> tuple[SparseVector | None, Literal["hybrid", "dense"], Options]:
    """What all rankings of such a search share: the question's lexical vector (None: dense), the mode, and options."""
    info, encoder = read_collection(client, collection, embedder.spec)
    options = Options(limit, condition=as_filter(query_filter, info.payload_schema))
    if choose_mode(mode, encoder, client, collection) == "hybrid" and encoder is not None:
        return find_terms(encoder, check_text(question, 0)), "hybrid", options
    return None, "dense", options


def embed_question(
    embedder: Embedder, question: str, instruction: str | None, steps: int | None, **options: Any
) -> EmbeddingResult:
    """Embed one question, with `options` of `Embedder.embed`. No warning about `steps`: the caller chose them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="queries take .* refinement step", category=GircseWarning)
        return embedder.embed([question], role="query", instruction=instruction, steps=steps, **options)
