from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from qdrant_client import QdrantClient, models

from gircse_rag.errors import GircseWarning, InputError
from gircse_rag.qdrant import Document, Hit, ingest, open_client, search, search_batch, search_coarse_to_fine
from gircse_rag.qdrant.points import point_id
from tests.stand_in import Query, StandIn, WordHashBackend

TEXTS = {"cats": "cats purr and sleep", "dogs": "dogs bark and run", "birds": "birds sing at dawn"}


@pytest.fixture(params=["local", "edge"])
def engine_client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[QdrantClient]:
    """Both embedded engines, which must give the same search results."""
    if request.param == "edge":
        pytest.importorskip("qdrant_edge", reason="the edge extra is not installed")
    client = open_client(tmp_path / "store", engine=request.param)
    yield client
    client.close()


def _fill(client: QdrantClient, embedder: StandIn) -> QdrantClient:
    documents = [
        Document(name, text, {"legs": 2 if name == "birds" else 4, "wings": name == "birds"})
        for name, text in TEXTS.items()
    ]
    ingest(documents, collection="docs", embedder=embedder, client=client)
    return client


@pytest.fixture
def filled(engine_client: QdrantClient, embedder: StandIn) -> QdrantClient:
    return _fill(engine_client, embedder)


@pytest.fixture
def local(client: QdrantClient, embedder: StandIn) -> QdrantClient:
    return _fill(client, embedder)


def _search(client: QdrantClient, embedder: StandIn, question: str, **options: Any) -> list[Hit]:
    return search(question, collection="docs", embedder=embedder, client=client, **options)


def test_hits_are_ranked_by_cosine_and_carry_the_document(filled: QdrantClient, embedder: StandIn) -> None:
    hits = _search(filled, embedder, "dogs bark and run", mode="dense")
    assert hits[0].document == "dogs" and len(hits) == 3
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    for hit in hits:
        assert hit.document is not None
        assert hit.text == TEXTS[hit.document] and hit.id == point_id(hit.document, 0)
        cosine = float(embedder.vector(hit.text) @ embedder.vector("dogs bark and run"))
        assert hit.score == pytest.approx(cosine, abs=1e-6)
    assert hits[0].metadata["source"] == "dogs" and hits[0].metadata["legs"] == 4
    assert hits[0].metadata["_chunk"] == {"number": 0, "chunks": 1, "start": 0, "end": 17, "headings": []}


def test_limit_and_filter_reach_qdrant(filled: QdrantClient, embedder: StandIn) -> None:
    assert len(_search(filled, embedder, "cats", limit=2)) == 2
    legs = models.FieldCondition(key="metadata.legs", match=models.MatchValue(value=2))
    hits = _search(filled, embedder, "cats", query_filter=models.Filter(must=[legs]))
    assert [hit.document for hit in hits] == ["birds"]


def test_instruction_and_steps_reach_the_embedder(local: QdrantClient) -> None:
    embedder = StandIn()
    with pytest.warns(GircseWarning, match="queries take 20 refinement steps"):
        _search(local, embedder, "cats", instruction="find animals", steps=20)
    assert embedder.words.queries == [Query("cats", "find animals", 20)] and embedder.embedded == []


@pytest.mark.parametrize("limit", [0, -1, 2.5, True, None, 2**31, 2**70])
def test_invalid_limits_are_refused(local: QdrantClient, embedder: StandIn, limit: object) -> None:
    with pytest.raises(InputError, match="limit must be"):
        _search(local, embedder, "cats", limit=limit)


def test_the_largest_limits_find_everything(filled: QdrantClient, embedder: StandIn) -> None:
    assert len(_search(filled, embedder, "cats", limit=2**31 - 1)) == 3
    assert len(_search(filled, embedder, "cats", limit=2**31 - 1, mmr=0.5)) == 3
    assert len(_search(filled, embedder, "cats", limit=2**31 - 1, group_size=2**31 - 1)) == 3
    assert _search(filled, embedder, "cats", offset=2**31 - 1) == []


@pytest.mark.parametrize("question", ["", "  ", None, "\ud800"])
def test_invalid_questions_are_refused(local: QdrantClient, embedder: StandIn, question: str) -> None:
    with pytest.raises(InputError):
        _search(local, embedder, question)


def test_points_of_other_tools_are_found(filled: QdrantClient, embedder: StandIn) -> None:
    vector = embedder.vector("written elsewhere").tolist()
    filled.upsert("docs", [models.PointStruct(id=7, vector={"gircse": vector}, payload={"page_content": "hi"})])
    (hit,) = _search(filled, embedder, "written elsewhere", limit=1)
    assert replace(hit, score=0) == Hit("7", 0, "hi", {}, None, dense_rank=1)


FOREIGN: list[tuple[dict[str, Any], str]] = [
    ({"page_content": 42, "metadata": "none"}, ""),
    ({"page_content": ["a"], "metadata": [1]}, ""),
    ({"_node_content": "no JSON"}, ""),
    ({"_node_content": "[1]"}, ""),
    ({"_node_content": 7, "gircse": "x"}, ""),
    ({"_node_content": '{"text": "from a node", "metadata": 5}'}, "from a node"),
]


@pytest.mark.parametrize(("payload", "text"), FOREIGN)
def test_payloads_of_other_types_have_no_text(
    filled: QdrantClient, embedder: StandIn, payload: dict[str, Any], text: str
) -> None:
    vector = embedder.vector("written elsewhere").tolist()
    filled.upsert("docs", [models.PointStruct(id=7, vector={"gircse": vector}, payload=payload)])
    (hit,) = _search(filled, embedder, "written elsewhere", limit=1)
    assert replace(hit, score=0) == Hit("7", 0, text, {}, None, dense_rank=1)


LEGS = models.FieldCondition(key="metadata.legs", match=models.MatchValue(value=4))


FILTERS: list[tuple[object, set[str]]] = [
    ({"legs": 2}, {"birds"}),
    ({"legs": [2, 7]}, {"birds"}),
    ({"legs": {"gte": 3}}, {"cats", "dogs"}),
    ({"legs": [2.0, 4.5]}, {"birds"}),
    ({"legs": ["four", 4, True]}, {"cats", "dogs"}),
    ({"wings": [True, False]}, set(TEXTS)),
    ({"wings": [True, 0]}, {"birds"}),
    ({"legs": {"gt": 1, "lt": 3.5}}, {"birds"}),
    ({"legs": 4.0}, {"cats", "dogs"}),
    ({"legs": 4, "source": "dogs"}, {"dogs"}),
    ({"source": ("dogs", "birds")}, {"dogs", "birds"}),
    ({"legs": 4, "source": "birds"}, set()),
    ({"_chunk.number": 0}, set(TEXTS)),
    ({"wings": True}, {"birds"}),
    ({"wings": False, "legs": {"lte": 4}}, {"cats", "dogs"}),
    ({"legs": "4"}, {"cats", "dogs"}),
    ({"legs": ["2", "seven"], "wings": "true"}, {"birds"}),
    ({"legs": {"ne": 2}}, {"cats", "dogs"}),
    ({"legs": {"ne": [2, 4]}}, set()),
    ({"legs": {"gte": 2, "ne": "4"}}, {"birds"}),
    ({"beak": None, "legs": {"exists": True}}, set(TEXTS)),
    ({"beak": {"exists": True}}, set()),
    ({"beak": ["long", None], "source": "cats"}, {"cats"}),
    ({"beak": {"ne": "long"}}, set(TEXTS)),
    ({}, set(TEXTS)),
    (models.Filter(must_not=[LEGS]), {"birds"}),
    (None, set(TEXTS)),
]


def test_filters_select_by_metadata(filled: QdrantClient, embedder: StandIn) -> None:
    for query_filter, expected in FILTERS:
        hits = _search(filled, embedder, "animals", query_filter=query_filter)
        assert {hit.document for hit in hits} == expected, query_filter


def test_a_filter_compares_dates(engine_client: QdrantClient, embedder: StandIn) -> None:
    documents = [Document(day, "same text", {"day": day}) for day in ("2024-05-01", "2025-05-01")]
    ingest(documents, collection="docs", embedder=embedder, client=engine_client)
    for bounds in ({"gte": "2025-01-01T00:00:00Z"}, {"gte": "2025-01-01", "lt": None}):
        hits = _search(engine_client, embedder, "same", query_filter={"day": bounds})
        assert [hit.document for hit in hits] == ["2025-05-01"]


def test_filters_reach_field_names_with_special_characters(engine_client: QdrantClient, embedder: StandIn) -> None:
    metadata = {
        "Release Date": "2020",
        "a/b": {"c d": ["x", "y"]},
        "price [EUR]": 7,
        "No. of pages": 9,
        "größe": 1,
        "parts": [{"my name": "wheel"}, {"my name": "door"}],
        "tags": ["new", "old"],
    }
    documents = [Document("it", "this one", metadata), Document("other", "another one", {"Release Date": "2021"})]
    ingest(documents, collection="docs", embedder=embedder, client=engine_client)
    for key, value in [
        ("Release Date", "2020"),
        ("a/b.c d", "y"),
        ("a/b.c d[0]", "x"),
        ("price [EUR]", {"gte": 6}),
        ('"No. of pages"', [8, 9]),
        ("größe", 1),
        ("parts[].my name", "door"),
        ("parts[0].my name", "wheel"),
        ("tags", "old"),
        ("tags[]", "old"),
    ]:
        hits = _search(engine_client, embedder, "one", query_filter={key: value})
        assert [hit.document for hit in hits] == ["it"], key
    assert _search(engine_client, embedder, "one", query_filter={"parts[1].my name": "wheel"}) == []


@pytest.mark.parametrize(
    ("query_filter", "message"),
    [
        ("legs", "must be a mapping"),
        ({"No. of pages": 1}, "dots reach inside an object"),
        ({'in 3" steps': 1}, "no filter reaches a name with a double quote"),
        ({"": 1}, "name of a metadata field"),
        ({1: 1}, "name of a metadata field"),
        ({"legs": []}, "'legs': the list is empty"),
        ({"legs": {}}, "no range"),
        ({"legs": {"above": 3}}, "no range; use exists, gt, gte, lt, lte, ne"),
        ({"legs": {"gte": "tall"}}, "'legs'.*neither of numbers nor of dates"),
        ({"year": {"gte": "1990"}}, r"'year'.*give numbers without quotes \(1990\), or whole ISO dates"),
        ({"year": {"gte": "19900101"}}, "'year'.*neither of numbers nor of dates"),
        ({"year": {"gte": 5, "lt": "2025-01-01"}}, "'year'.*neither of numbers nor of dates"),
        ({"year": {"gte": ["2025"]}}, "'year'.*cannot be compared"),
        ({"legs": b"4"}, "'legs': b'4' cannot be compared; give a string, a number"),
        ({"legs": {"ne": {"gte": 1}}}, "'legs': 'ne' takes a value or a list"),
        ({"legs": {"exists": 1}}, "'legs': 'exists' is True or False, not 1"),
    ],
)
def test_invalid_filters_are_refused(
    local: QdrantClient, embedder: StandIn, query_filter: object, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        _search(local, embedder, "cats", query_filter=query_filter)


def test_search_batch_equals_search_for_each_question(filled: QdrantClient, embedder: StandIn) -> None:
    questions = ["cats purr", "birds sing", "dogs", "cats purr"] * 20  # more than fit into one request
    several = search_batch(questions, collection="docs", embedder=embedder, client=filled, limit=2)
    assert several == [_search(filled, embedder, question, limit=2) for question in questions]
    assert several[1][0].document == "birds"


def test_search_batch_embeds_questions_together_and_gives_the_index_of_a_bad_one(
    local: QdrantClient, embedder: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    embed = embedder.embed

    def counted(texts: list[str], **options: Any) -> object:
        calls.append(list(texts))
        return embed(texts, **options)

    monkeypatch.setattr(embedder, "embed", counted)
    search_batch(["a", "b"], collection="docs", embedder=embedder, client=local)
    assert calls == [["a", "b"]]
    with pytest.raises(InputError) as caught:
        search_batch(["a", " ", "c"], collection="docs", embedder=embedder, client=local)
    assert caught.value.index == 1


def test_offset_and_min_score(filled: QdrantClient, embedder: StandIn) -> None:
    everything = _search(filled, embedder, "dogs bark", mode="dense")
    assert _search(filled, embedder, "dogs bark", limit=1, offset=1, mode="dense") == everything[1:2]
    assert _search(filled, embedder, "dogs bark", offset=3, mode="dense") == []
    min_score = (everything[0].score + everything[1].score) / 2
    assert _search(filled, embedder, "dogs bark", min_score=min_score, mode="dense") == everything[:1]
    assert _search(filled, embedder, "dogs bark", min_score=1, mode="dense") == []


@pytest.mark.parametrize("mode", ["hybrid", "dense", "lexical"])
def test_a_score_equal_to_the_minimum_counts_on_every_store(filled: QdrantClient, embedder: StandIn, mode: Any) -> None:
    ranking = "lexical" if mode == "lexical" else "dense"
    for hit in _search(filled, embedder, "dogs bark cats", mode=ranking):
        at, above = (
            {each.document for each in _search(filled, embedder, "dogs bark cats", mode=mode, min_score=minimum)}
            for minimum in (hit.score, math.nextafter(hit.score, math.inf))
        )
        assert hit.document in at and hit.document not in above


@pytest.fixture
def repetitive(engine_client: QdrantClient, embedder: StandIn) -> QdrantClient:
    """Two documents of three chunks and one of one chunk; two chunks of "first" are near-duplicates."""
    texts = {
        "first": ["apples are red fruit, said the man", "apples are red fruit, said the woman", "nobody was at home"],
        "second": ["apples and pears grow on trees", "the sea is wide and deep tonight", "a stone lies on the way"],
        "third": ["red is a colour, said the painter"],
    }
    documents = [Document(name, "\n\n".join(parts)) for name, parts in texts.items()]
    ingest(documents, collection="docs", embedder=StandIn(max_length=44), client=engine_client)
    return engine_client


def test_groups_hold_at_most_group_size_hits_per_document(repetitive: QdrantClient) -> None:
    embedder = StandIn(max_length=44)
    plain = _search(repetitive, embedder, "apples are red fruit", limit=100)
    assert len(plain) == 7
    hits = _search(repetitive, embedder, "apples are red fruit", limit=2, group_size=2)
    best: dict[str | None, list[Hit]] = {}
    for hit in plain:
        best.setdefault(hit.document, []).append(hit)
    assert [hit.id for hit in hits] == [hit.id for name in list(best)[:2] for hit in best[name][:2]]
    assert len(hits) > 2 and hits[0].document == "first"


def test_groups_skip_points_without_a_document(repetitive: QdrantClient) -> None:
    embedder = StandIn(max_length=44)
    vector = embedder.vector("red sea").tolist()
    repetitive.upsert("docs", [models.PointStruct(id=7, vector={"gircse": vector}, payload={"page_content": "hi"})])
    assert None in {hit.document for hit in _search(repetitive, embedder, "red sea")}
    assert None not in {hit.document for hit in _search(repetitive, embedder, "red sea", group_size=1)}


def test_mmr_replaces_repetitions(repetitive: QdrantClient) -> None:
    embedder = StandIn(max_length=44)
    question = "apples are red fruit, said the man"
    plain = _search(repetitive, embedder, question, limit=2, mode="dense")
    assert [hit.text for hit in plain] == [question, "apples are red fruit, said the woman"]
    unchanged = _search(repetitive, embedder, question, limit=2, mmr=0, mode="dense")
    assert [hit.id for hit in unchanged] == [hit.id for hit in plain]
    diverse = _search(repetitive, embedder, question, limit=2, mmr=0.9, mode="dense")
    assert diverse[0].id == plain[0].id and diverse[1].text != plain[1].text
    for hit in diverse:
        assert hit.score == pytest.approx(float(embedder.vector(hit.text) @ embedder.vector(question)), abs=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"offset": -1},
        {"offset": True},
        {"group_size": 0},
        {"min_score": 1.5},
        {"min_score": "high"},
        {"mmr": -0.1},
        {"mmr": float("nan")},
        {"group_size": 1, "offset": 1},
        {"group_size": 1, "mmr": 0.5},
    ],
)
def test_invalid_options_are_refused(local: QdrantClient, embedder: StandIn, options: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        _search(local, embedder, "cats", **options)


class StepwiseBackend(WordHashBackend):
    """A WordHashBackend whose first step sees only the first word."""

    def trajectory(self, text: str, steps: int) -> NDArray[np.float32]:
        trajectory = super().trajectory(text, steps)
        trajectory[0] = self.vector(text.split()[0])
        return trajectory


def test_coarse_to_fine_answers_before_it_refines() -> None:
    client, embedder = QdrantClient(":memory:"), StandIn(words=StepwiseBackend(16))
    queries, question = embedder.words.queries, "cats purr and sleep"
    documents = [Document(text, text) for text in ("cats", "cats purr", "cats purr and sleep", "dogs")]
    ingest(documents, collection="docs", embedder=embedder, client=client)
    answers = search_coarse_to_fine(
        question,
        collection="docs",
        embedder=embedder,
        client=client,
        instruction="find",
        limit=2,
        mode="dense",
    )
    assert queries == []
    coarse = next(answers)
    assert [hit.document for hit in coarse] == ["cats", "cats purr"] and queries == [Query(question, "find", 1)]
    fine = next(answers)
    assert queries == [Query(question, "find", 1), Query(question, "find", embedder.spec.document_steps)]
    assert [hit.document for hit in fine] == ["cats purr and sleep", "cats purr"]
    assert fine == [
        replace(hit, score=pytest.approx(hit.score, abs=1e-6))  # type: ignore[arg-type]
        for hit in _search(client, embedder, question, limit=2, mode="dense")
    ]
    assert list(answers) == []


def test_coarse_to_fine_reranks_only_its_candidates_and_accepts_a_filter() -> None:
    client, embedder = QdrantClient(":memory:"), StandIn(words=StepwiseBackend(16))
    documents = [Document(text, text) for text in ("cats", "cats purr", "cats purr and sleep")]
    ingest(documents, collection="docs", embedder=embedder, client=client)

    def ask(**options: Any) -> list[list[str | None]]:
        answers = search_coarse_to_fine(
            "cats purr and sleep",
            collection="docs",
            embedder=embedder,
            client=client,
            limit=1,
            mode="dense",
            **options,
        )
        return [[hit.document for hit in hits] for hits in answers]

    assert ask(candidates=2) == [["cats"], ["cats purr"]]
    assert ask(query_filter={"source": "cats purr"}) == [["cats purr"], ["cats purr"]]
    assert ask(query_filter={"source": "nothing"}) == [[], []]
    with pytest.raises(InputError, match="candidates"):
        ask(candidates=0)
