"""Hybrid and lexical search, on every kind of store."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from qdrant_client import QdrantClient, models

from gircse_rag.errors import GircseWarning, InputError, StoreError
from gircse_rag.lexical import Bm25Encoder
from gircse_rag.lexical.fusion import fuse
from gircse_rag.qdrant import Document, Hit, create_collection, ingest, search, search_batch
from gircse_rag.qdrant import search_coarse_to_fine as coarse_to_fine
from tests.stand_in import StandIn

TEXTS = {
    "kernel": "error E4711 means: the kernel finds no root file system",
    "mount": "mounting a file system needs the mount command and a device",
    "root": "the root of a plant grows into the ground",
    "system": "operating systems manage memory, files and devices",
    "plants": "plants need water, light and ground",
    "codes": "error codes E1 to E99 are explained in the manual",
}
QUESTION = "what does error E4711 mean?"


@pytest.fixture
def client(every_store: QdrantClient) -> QdrantClient:
    return every_store


@pytest.fixture
def filled(client: QdrantClient, embedder: StandIn) -> QdrantClient:
    documents = [Document(name, text, {"length": len(text)}) for name, text in TEXTS.items()]
    ingest(documents, collection="docs", embedder=embedder, client=client)
    return client


def _search(client: QdrantClient, embedder: StandIn, question: str = QUESTION, **options: Any) -> list[Hit]:
    return search(question, collection="docs", embedder=embedder, client=client, **options)


def _documents(hits: list[Hit]) -> list[str | None]:
    return [hit.document for hit in hits]


def _bm25(question: str, texts: dict[str, str]) -> dict[str, float]:
    """BM25 by its formula: id -> score of each text that shares a term with the question."""
    encoder = Bm25Encoder()
    vectors = {name: encoder.encode_document(text) for name, text in texts.items()}
    scores: dict[str, float] = {}
    for term in encoder.encode_question(question):
        holders = [name for name, vector in vectors.items() if term in vector]
        idf = np.log(1 + (len(texts) - len(holders) + 0.5) / (len(holders) + 0.5))
        for name in holders:
            scores[name] = scores.get(name, 0) + idf * vectors[name][term]
    return dict(sorted(scores.items(), key=lambda item: -item[1]))


def test_lexical_mode_ranks_by_bm25_and_does_not_embed(filled: QdrantClient, embedder: StandIn) -> None:
    expected = _bm25(QUESTION, TEXTS)
    hits = _search(filled, embedder, mode="lexical")
    assert _documents(hits) == list(expected) == ["kernel", "codes"]
    assert [hit.score for hit in hits] == pytest.approx(list(expected.values()), rel=1e-5)
    assert [(hit.lexical_rank, hit.dense_rank) for hit in hits] == [(1, None), (2, None)]
    assert embedder.words.queries == []
    assert _documents(_search(filled, embedder, mode="lexical", offset=1)) == ["codes"]
    assert _search(filled, embedder, mode="lexical", offset=1)[0].lexical_rank == 2
    assert _documents(_search(filled, embedder, mode="lexical", min_score=hits[0].score - 0.1)) == ["kernel"]
    assert _documents(_search(filled, embedder, mode="lexical", query_filter={"source": "codes"})) == ["codes"]


def test_hybrid_is_the_default_and_fuses_both_rankings(filled: QdrantClient, embedder: StandIn) -> None:
    dense = _search(filled, embedder, mode="dense", limit=99)
    lexical = _search(filled, embedder, mode="lexical", limit=99)
    by_vector, by_words = ([(hit.id, hit.score) for hit in hits] for hits in (dense, lexical))
    expected = fuse(by_vector, by_words, len(TEXTS))
    hits = _search(filled, embedder, limit=99)
    assert [hit.id for hit in hits] == [each.id for each in expected] and len(hits) == len(TEXTS)
    assert [hit.score for hit in hits] == pytest.approx([each.score for each in expected], abs=1e-5)
    for hit in hits:
        assert hit.dense_rank == 1 + [other.id for other in dense].index(hit.id)
        ranks = {other.id: other.lexical_rank for other in lexical}
        assert hit.lexical_rank == ranks.get(hit.id)
        assert hit.document is not None and hit.text == TEXTS[hit.document] and hit.metadata["length"] == len(hit.text)
    assert hits == _search(filled, embedder, limit=99, mode="hybrid")


def test_pages_of_a_hybrid_search_do_not_overlap(filled: QdrantClient, embedder: StandIn) -> None:
    everything = _search(filled, embedder, limit=99)
    pages = [_search(filled, embedder, limit=2, offset=start) for start in (0, 2, 4, 6)]
    assert [hit for page in pages for hit in page] == everything


def test_hybrid_search_obeys_a_filter(filled: QdrantClient, embedder: StandIn) -> None:
    hits = _search(filled, embedder, query_filter={"source": ["codes", "plants"]})
    assert set(_documents(hits)) == {"codes", "plants"} and hits[0].document == "codes"


def test_min_score_is_a_cosine_in_hybrid_mode_too(filled: QdrantClient, embedder: StandIn) -> None:
    cosines = {hit.document: hit.score for hit in _search(filled, embedder, mode="dense", limit=99)}
    threshold = sorted(cosines.values())[3] - 1e-4
    expected = {name for name, cosine in cosines.items() if cosine >= threshold}
    assert set(_documents(_search(filled, embedder, limit=99, min_score=threshold))) == expected
    assert _search(filled, embedder, min_score=1) == []


def test_min_score_looks_up_the_cosine_of_hits_beyond_the_dense_ranking(
    filled: QdrantClient, embedder: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gircse_rag.qdrant.hybrid.DEPTH", 1)
    questions = [f"explaining {number}" for number in range(20)]  # no text has exactly these words
    dense = search_batch(questions, collection="docs", embedder=embedder, client=filled, limit=2, mode="dense")
    question = next(text for text, hits in zip(questions, dense, strict=True) if "codes" not in _documents(hits))
    hits = _search(filled, embedder, question, limit=2)
    cosines = {hit.document: hit.score for hit in _search(filled, embedder, question, mode="dense", limit=99)}
    assert (hits[1].document, hits[1].dense_rank, hits[1].lexical_rank) == ("codes", None, 1)
    for threshold, kept in ((cosines["codes"] - 1e-4, True), (cosines["codes"] + 1e-4, False)):
        hits = _search(filled, embedder, question, limit=2, min_score=threshold)
        assert ("codes" in _documents(hits)) is kept


def test_groups_of_a_hybrid_search(client: QdrantClient) -> None:
    embedder = StandIn(max_length=44)
    texts = {
        "first": ["apples are red fruit, said the man", "apples are red fruit, said the woman", "nobody was at home"],
        "second": ["apples and pears grow on trees", "the sea is wide and deep tonight", "a stone lies on the way"],
        "third": ["red is a colour, said the painter"],
    }
    documents = [Document(name, "\n\n".join(parts)) for name, parts in texts.items()]
    ingest(documents, collection="docs", embedder=embedder, client=client)
    plain = _search(client, embedder, "apples are red fruit", limit=100)
    assert len(plain) == 7
    hits = _search(client, embedder, "apples are red fruit", limit=2, group_size=2)
    best: dict[str | None, list[str]] = {}
    for hit in plain:
        best.setdefault(hit.document, []).append(hit.id)
    assert [hit.id for hit in hits] == [id for name in list(best)[:2] for id in best[name][:2]]
    assert hits[0].document == "first" and hits[0].dense_rank == 1 and hits[0].lexical_rank is not None


def test_mmr_of_a_hybrid_search_replaces_repetitions(client: QdrantClient, embedder: StandIn) -> None:
    texts = ["red apples are fruit", "red apples are fruits", "green pears are fruit", "the sea is deep"]
    ingest([Document(text, text) for text in texts], collection="docs", embedder=embedder, client=client)
    plain = _search(client, embedder, "red apples fruit", limit=2)
    assert _documents(plain) == texts[:2]
    assert _search(client, embedder, "red apples fruit", limit=2, mmr=0) == plain
    diverse = _search(client, embedder, "red apples fruit", limit=2, mmr=0.6)
    assert diverse[0] == plain[0] and diverse[1].document not in texts[:2]
    assert _search(client, embedder, "red apples fruit", limit=1, offset=1, mmr=0.6) == diverse[1:]


def test_search_batch_equals_search_in_every_mode(filled: QdrantClient, embedder: StandIn) -> None:
    questions = [QUESTION, "plants in the ground", "the of and", QUESTION] * 12  # more than fit into one request
    several = search_batch(questions, collection="docs", embedder=embedder, client=filled, limit=2)
    assert several == [_search(filled, embedder, question, limit=2) for question in questions]
    with pytest.warns(GircseWarning, match=r"text 2 \('the of and'\) has no words except english stop words"):
        found = search_batch(questions[:4], collection="docs", embedder=embedder, client=filled, mode="lexical")
    assert [bool(hits) for hits in found] == [True, True, False, True]


@pytest.mark.parametrize("question", ["what is it?", "🎉🎉", "Εξήγηση", "?!"])
def test_without_a_known_word_the_dense_ranking_answers(filled: QdrantClient, embedder: StandIn, question: str) -> None:
    hits = _search(filled, embedder, question, limit=99)
    dense = _search(filled, embedder, question, limit=99, mode="dense")
    assert [hit.id for hit in hits] == [hit.id for hit in dense] and len(hits) == len(TEXTS)
    assert {hit.lexical_rank for hit in hits} == {None}


def test_a_question_of_5000_words(filled: QdrantClient) -> None:
    question = " ".join(f"word{number}" for number in range(5000)) + " E4711"
    with pytest.warns(GircseWarning, match="longer than 64 tokens"):
        hits = _search(filled, StandIn(), question)
    assert [hit.document for hit in hits if hit.lexical_rank] == ["kernel"]
    assert _documents(_search(filled, StandIn(), question, mode="lexical")) == ["kernel"]


def test_coarse_to_fine_fuses_the_lexical_ranking(filled: QdrantClient, embedder: StandIn) -> None:
    answers = [*coarse_to_fine(QUESTION, collection="docs", embedder=embedder, client=filled, limit=3, candidates=6)]
    expected = _search(filled, embedder, limit=3)
    for hits in answers:
        assert [(hit.id, hit.dense_rank, hit.lexical_rank) for hit in hits] == [
            (hit.id, hit.dense_rank, hit.lexical_rank) for hit in expected
        ]
        assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in expected], abs=1e-5)
    with pytest.raises(InputError, match="do not change the lexical ranking"):
        next(coarse_to_fine(QUESTION, collection="docs", embedder=embedder, client=filled, mode="lexical"))


def test_points_of_other_tools_without_a_lexical_vector_are_found(filled: QdrantClient, embedder: StandIn) -> None:
    vector = embedder.vector("error E4711").tolist()
    filled.upsert("docs", [models.PointStruct(id=7, vector={"gircse": vector}, payload={"page_content": "theirs"})])
    hit = next(hit for hit in _search(filled, embedder, limit=99) if hit.id == "7")
    assert hit.text == "theirs" and hit.lexical_rank is None and hit.dense_rank is not None


def test_a_document_without_terms_is_found_by_its_embedding(client: QdrantClient, embedder: StandIn) -> None:
    documents = [Document("none", "to be or not to be"), Document("some", "cats purr")]
    report = ingest(documents, collection="docs", embedder=embedder, client=client)
    assert report.added == 2
    assert _documents(_search(client, embedder, "to be or not to be")) == ["none", "some"]


def test_the_language_is_recorded_and_used(client: QdrantClient, embedder: StandIn) -> None:
    create_collection(client, "docs", embedder, language="german")
    ingest(
        [Document("a", "zwei alte Häuser"), Document("b", "ein Baum")],
        collection="docs",
        embedder=embedder,
        client=client,
    )
    config = client.get_collection("docs").config
    assert config.metadata is not None and config.metadata["gircse"]["lexical"]["language"] == "german"
    assert _documents(_search(client, embedder, "das Haus", mode="lexical")) == ["a"]
    with pytest.raises(InputError, match="has a lexical vector in german, not in french"):
        ingest([], collection="docs", embedder=embedder, client=client, language="french")
    ingest([], collection="docs", embedder=embedder, client=client, language="german")
    with pytest.raises(InputError, match="'latin' has no stemmer; choose one of"):
        ingest([], collection="other", embedder=embedder, client=client, language="latin")
    assert not client.collection_exists("other")


@pytest.fixture
def old(client: QdrantClient, embedder: StandIn) -> QdrantClient:
    """A collection as earlier versions made it."""
    params = models.VectorParams(size=embedder.dimension, distance=models.Distance.COSINE)
    stamp = {"fingerprint": embedder.fingerprint, "spec": embedder.spec.to_dict()}
    client.create_collection("docs", {"gircse": params}, metadata={"gircse": stamp})
    documents = [Document(name, text) for name, text in TEXTS.items()]
    ingest(documents, collection="docs", embedder=embedder, client=client)
    return client


def test_an_old_collection_is_searched_by_its_dense_vector(old: QdrantClient, embedder: StandIn) -> None:
    with pytest.warns(GircseWarning, match=r"has no lexical vector.*gircse migrate docs --add-lexical"):
        hits = _search(old, embedder)
    assert hits == _search(old, embedder, mode="dense") == _search(old, embedder)  # and warns only once
    for mode in ("hybrid", "lexical"):
        with pytest.raises(StoreError, match=r"has no lexical vector.*gircse migrate docs --add-lexical.*mode='dense'"):
            _search(old, embedder, mode=mode)
    with pytest.raises(InputError, match="has no lexical vector, so language='german' has no effect"):
        ingest([], collection="docs", embedder=embedder, client=old, language="german")


def test_a_lexical_vector_of_other_settings_is_refused(client: QdrantClient, embedder: StandIn) -> None:
    create_collection(client, "docs", embedder)
    config = client.get_collection("docs").config
    assert config.metadata is not None
    stamp = config.metadata["gircse"]
    stamp["lexical"]["k"] = 2.0
    client.create_collection(
        "tuned",
        {"gircse": models.VectorParams(size=embedder.dimension, distance=models.Distance.COSINE)},
        sparse_vectors_config={"bm25": models.SparseVectorParams(modifier=models.Modifier.IDF)},
        metadata={"gircse": stamp},
    )
    with pytest.raises(StoreError, match=r"'tuned' has a lexical vector made with other settings .*'k': 2.0"):
        search("cats", collection="tuned", embedder=embedder, client=client)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "sparse"}, "mode must be hybrid, dense or lexical, not 'sparse'"),
        ({"mode": "lexical", "mmr": 0.5}, "mmr compares embeddings"),
        ({"mode": "hybrid", "min_score": 1.5}, "min_score must be a number from -1 to 1"),
    ],
)
def test_invalid_modes_are_refused(
    filled: QdrantClient, embedder: StandIn, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        _search(filled, embedder, **options)
    with pytest.raises(InputError):
        _search(filled, embedder, " ", mode="lexical")
