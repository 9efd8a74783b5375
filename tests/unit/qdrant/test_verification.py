"""`verify`: what it finds, how its findings are repaired, and that intact collections pass."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from qdrant_client import QdrantClient, models

from gircse_rag.errors import GircseError, StoreError
from gircse_rag.qdrant import Document, create_collection, ingest, open_client, verify
from gircse_rag.qdrant.lexical import LEXICAL
from gircse_rag.qdrant.points import point_id
from gircse_rag.qdrant.schema import RECORD, VECTOR
from tests.stand_in import StandIn

pytestmark = pytest.mark.slow  # damages and repairs whole stores

Open = Callable[[], QdrantClient]
_BLOCK = 2**16


def _documents() -> list[Document]:
    """Documents of one, four and seven chunks, with metadata that stores like to change."""
    metadata = {
        "third": 1 / 3,
        "far": -7.63903912433256e-206,
        "count": 2**62,
        "one": 1.0,
    }
    return [
        Document(f"d{n}", " ".join(f"sentence {n} {m} of a text" for m in range(1 + 8 * (n % 3))), {**metadata, "n": n})
        for n in range(12)
    ]


def _ingest(client: QdrantClient, embedder: StandIn, documents: list[Document] | None = None, **options: Any) -> Any:
    return ingest(documents or _documents(), collection="docs", embedder=embedder, client=client, **options)


@pytest.fixture
def embedder() -> StandIn:
    return StandIn(48)  # its vectors are not exactly of unit length


def _check(client: QdrantClient) -> list[str]:
    return [str(damage) for damage in verify("docs", client).damaged]


def test_whatever_ingest_writes_is_found_as_written(opener: Open, embedder: StandIn) -> None:
    """After writing, reopening, replacing, shortening, moving to another source, and reusing vectors."""
    documents = _documents()
    for change in range(4):
        if change == 1:
            documents[2] = Document("d2", "Something new first. " + documents[2].text)
            documents[5] = Document("d5", documents[5].text[:40])
        if change == 2:
            documents[1] = Document("d1", documents[1].text, {"other": "metadata"})
        with closing(opener()) as client:
            assert not _ingest(client, embedder, documents, source=f"source {change // 3}", batch_size=5).failed
            report = verify("docs", client)
            assert (report.damaged, report.unchecked, report.documents) == ([], 0, 12)
        with closing(opener()) as client:
            assert verify("docs", client).damaged == []
            assert report.points == client.count("docs").count


def test_vectors_of_other_lengths_are_normalised_before_they_are_hashed(opener: Open) -> None:
    embedder = StandIn(48)
    embedder.words.vector = lambda text: 1.001 * StandIn(48).vector(text)  # type: ignore[method-assign]
    with closing(opener()) as client:
        _ingest(client, embedder)
        assert _check(client) == []


class _Damage(NamedTuple):
    """How to damage the second chunk of the document "d1", what is then said of it, and how much is embedded again."""

    name: str
    damage: Callable[[QdrantClient, models.Record], None]
    found: list[str]
    embedded: int


def _set(**payload: Any) -> Callable[[QdrantClient, models.Record], None]:
    return lambda client, point: void(client.set_payload("docs", payload, points=[point.id]))


def void(_: object) -> None:
    """Discard a result."""


def _set_record(**fields: Any) -> Callable[[QdrantClient, models.Record], None]:
    def damage(client: QdrantClient, point: models.Record) -> None:
        client.set_payload("docs", {RECORD: {**(point.payload or {})[RECORD], **fields}}, points=[point.id])

    return damage


def _set_vector(client: QdrantClient, point: models.Record) -> None:
    vectors: Any = point.vector
    vector = list(vectors[VECTOR])
    vector[3] = float(-vector[3])
    vectors = {**vectors, VECTOR: vector}
    client.upsert("docs", [models.PointStruct(id=point.id, vector=vectors, payload=point.payload)])


def _set_lexical(client: QdrantClient, point: models.Record) -> None:
    sparse = models.SparseVector(indices=[1], values=[2.0])
    client.update_vectors("docs", [models.PointVectors(id=point.id, vector={LEXICAL: sparse})])


def _drop_lexical(client: QdrantClient, point: models.Record) -> None:
    client.delete_vectors("docs", [LEXICAL], models.PointIdsList(points=[point.id]))


def _move(client: QdrantClient, point: models.Record) -> None:
    vector: Any = point.vector
    client.delete("docs", models.PointIdsList(points=[point.id]))
    client.upsert("docs", [models.PointStruct(id=point_id("d1", 77), vector=vector, payload=point.payload)])


def _delete(client: QdrantClient, point: models.Record) -> None:
    client.delete("docs", models.PointIdsList(points=[point.id]))


DAMAGES = [
    _Damage("text", _set(page_content="another text"), ["d1, chunk 1: its text differs"], 1),
    _Damage("metadata", _set(metadata={"n": 2}), ["d1, chunk 1: its metadata differs"], 1),
    _Damage("document", _set(doc_id="d2"), ["d1, chunk 1: its metadata differs"], 1),
    _Damage("vector", _set_vector, ["d1, chunk 1: its vector differs"], 1),
    _Damage("lexical", _set_lexical, ["d1, chunk 1: its lexical vector differs"], 1),
    _Damage("no lexical", _drop_lexical, ["d1, chunk 1: its lexical vector differs"], 1),
    _Damage("source", _set_record(source="x"), ["d1, chunk 1: its record differs"], 1),
    _Damage("reach", _set_record(reach=9), ["d1, chunk 1: its record differs"], 1),
    _Damage("version", _set_record(version="0"), ["d1, chunk 1: its record differs"], 1),
    _Damage("field", _set_record(reac=9), ["d1, chunk 1: its record cannot be read"], 1),
    _Damage("record", _set(gircse="?"), ["d1, chunk 1: its record cannot be read"], 1),
    _Damage("id", _move, ["point {}: it is stored under another id", "d1: chunk 1 is missing"], 1),
    _Damage("missing", _delete, ["d1: chunk 1 is missing"], 1),
]


@pytest.mark.parametrize("case", DAMAGES, ids=lambda case: case.name)
def test_damage_is_named_and_repaired_by_the_next_ingest(
    client: QdrantClient, embedder: StandIn, case: _Damage
) -> None:
    _check_repair(client, embedder, case)


def test_damage_is_repaired_in_every_store(opener: Open, embedder: StandIn) -> None:
    for case in DAMAGES:
        if case.name in ("metadata", "vector", "lexical", "record", "id"):
            with closing(opener()) as client:
                client.delete_collection("docs")
                _check_repair(client, embedder, case)


def _check_repair(client: QdrantClient, embedder: StandIn, case: _Damage) -> None:
    _ingest(client, embedder, source="mine")
    (point,) = client.retrieve("docs", [point_id("d1", 1)], with_vectors=True)
    case.damage(client, point)
    found = _check(client)
    assert len(found) == len(case.found)
    for line, expected in zip(found, case.found, strict=True):
        assert line.startswith(expected.format(point_id("d1", 77)))
    assert verify("docs", client, repair=True).repaired == (case.name != "missing")
    report = _ingest(client, embedder, source="mine")
    assert (report.updated, report.unchanged, report.embedded) == (1, 11, case.embedded)
    assert verify("docs", client).damaged == []
    assert client.count("docs").count == verify("docs", client).points


@pytest.mark.parametrize("case", DAMAGES, ids=lambda case: case.name)
def test_a_damaged_first_chunk_leaves_nothing_behind_when_the_document_got_shorter(
    client: QdrantClient, embedder: StandIn, case: _Damage
) -> None:
    """The record of chunk 0 says how many points there are; without it an ingest would not find the others."""
    _ingest(client, embedder, source="mine")
    (point,) = client.retrieve("docs", [point_id("d1", 0)], with_vectors=True)
    case.damage(client, point)
    assert _check(client)
    verify("docs", client, repair=True)
    documents = _documents()
    documents[1] = Document("d1", documents[1].text[:30])
    report = _ingest(client, embedder, documents, source="mine")
    assert (report.unchanged, report.failed) == (11, [])
    assert _check(client) == []
    chunks = [p for p in client.scroll("docs", limit=999)[0] if (p.payload or {})["doc_id"] == "d1"]
    assert len(chunks) == 1
    again = _ingest(client, embedder, [documents[0]], source="mine", sync=True)
    assert again.removed == 11, "a repaired document lost its source"


def test_texts_and_ids_that_are_no_unicode_are_damaged(client: QdrantClient, embedder: StandIn) -> None:
    """A flipped bit of a pickle can give a lone surrogate."""
    _ingest(client, embedder)
    _set(page_content="\ud800")(client, client.retrieve("docs", [point_id("d1", 1)])[0])
    _set_record(document="\ud800")(client, client.retrieve("docs", [point_id("d2", 1)])[0])
    assert sorted(_check(client)) == ["d1, chunk 1: its text differs", "d2, chunk 1: its record differs"]


def test_a_damaged_vector_is_not_used_again(opener: Open, embedder: StandIn) -> None:
    with closing(opener()) as client:
        _ingest(client, embedder)
        (point,) = client.retrieve("docs", [point_id("d1", 1)], with_vectors=True)
        _set_vector(client, point)
        documents = _documents()
        documents[1] = Document("d1", documents[1].text, {"changed": True})
        report = _ingest(client, embedder, documents)
        assert (report.updated, report.embedded) == (1, 1) and report.reused > 1
        assert _check(client) == []


def test_an_interrupted_ingest_is_found_and_completed(opener: Open, embedder: StandIn) -> None:
    with closing(opener()) as client:
        _ingest(client, embedder)
        (point,) = client.retrieve("docs", [point_id("d1", 0)])
        record = {**(point.payload or {})[RECORD]}
        ingest([Document("other", "text")], collection="docs", embedder=embedder, client=client)
        client.delete("docs", models.PointIdsList(points=[point_id("d2", 3), point_id("d2", 4)]))
        assert _check(client) == ["d2: 2 chunks are missing (3, 4)"]
        assert record["chunks"] > 1
        assert _ingest(client, embedder).embedded == 2
        assert _check(client) == []


def _without_checksums(client: QdrantClient) -> None:
    """Make the records those of a version that stored no checksums."""
    points, _ = client.scroll("docs", limit=999)
    for point in points:
        record = {key: value for key, value in (point.payload or {})[RECORD].items()}
        for name in ("content", "vector", "check"):
            del record[name]
        client.set_payload("docs", {RECORD: record}, points=[point.id])


def test_points_of_an_earlier_version_are_counted_and_not_embedded_again(opener: Open, embedder: StandIn) -> None:
    with closing(opener()) as client:
        total = _ingest(client, embedder, source="mine").embedded
        _without_checksums(client)
        report = verify("docs", client)
        assert (report.damaged, report.unchecked, report.points) == ([], total, total)
        again = _ingest(client, embedder, source="mine")
        assert (again.unchanged, again.embedded) == (12, 0)
        documents = _documents()
        documents[1] = Document("d1", documents[1].text + " One more.")
        assert _ingest(client, embedder, documents, source="mine").embedded <= 2
        assert verify("docs", client).damaged == []
        client.set_payload("docs", {"page_content": "?"}, points=[point_id("d2", 1)])
        client.delete("docs", models.PointIdsList(points=[point_id("d5", 0), point_id("d8", 1)]))
        expected = ["d2, chunk 1: its text differs", "d5: chunk 0 is missing", "d8: chunk 1 is missing"]
        assert _check(client) == expected
        verify("docs", client, repair=True)
        _ingest(client, embedder, documents, source="mine")
        assert _check(client) == []


def test_vectors_in_less_than_32_bits_are_not_compared(client: QdrantClient, embedder: StandIn) -> None:
    create_collection(client, "docs", embedder, vector_params={"datatype": "float16"})
    _ingest(client, embedder)
    (point,) = client.retrieve("docs", [point_id("d1", 1)], with_vectors=True)
    _set_vector(client, point)
    report = verify("docs", client)
    assert (report.damaged, report.vectors_checked) == ([], False)
    documents = _documents()
    documents[1] = Document("d1", documents[1].text, {"changed": True})
    assert _ingest(client, embedder, documents).embedded == 0, "a rounded vector counted as damaged"


def test_points_of_other_tools_are_counted(client: QdrantClient, embedder: StandIn) -> None:
    _ingest(client, embedder)
    vector = {VECTOR: embedder.vector("a").tolist()}
    client.upsert("docs", [models.PointStruct(id=5, vector=vector, payload={"page_content": "a", "doc_id": "d1"})])
    report = verify("docs", client, repair=True)
    assert (report.damaged, report.foreign, report.repaired) == ([], 1, 0)
    assert repr(report) == (
        f"VerifyReport(points={report.points}, documents=12, damaged=0, unchecked=0, foreign=1, repaired=0)"
    )


def test_a_point_that_changes_between_reading_and_repairing_is_left_alone(
    client: QdrantClient, embedder: StandIn
) -> None:
    _ingest(client, embedder)
    client.set_payload("docs", {"page_content": "?"}, points=[point_id("d1", 1)])

    def change(done: int, total: int) -> None:
        if done == total:
            _set_record(source="new")(client, client.retrieve("docs", [point_id("d1", 1)])[0])

    assert verify("docs", client, repair=True, progress=change).repaired == 0


def test_a_damaged_spec_is_found(client: QdrantClient, embedder: StandIn) -> None:
    _ingest(client, embedder)
    stamp = {"fingerprint": "f" * 32, "spec": embedder.spec.to_dict()}
    client.update_collection("docs", metadata={RECORD: stamp})
    assert "its spec has the fingerprint" in _check(client)[0]


@pytest.mark.parametrize("name", ["nothing", "foreign"])
def test_collections_that_gircse_did_not_make_are_refused(client: QdrantClient, name: str) -> None:
    client.create_collection("foreign", vectors_config=models.VectorParams(size=4, distance=models.Distance.COSINE))
    with pytest.raises(StoreError, match=r"no collection 'nothing'|not made by gircse"):
        verify(name, client)


# Damaged files


def test_a_row_that_disappears_from_a_local_file_is_found(tmp_path: Path, embedder: StandIn) -> None:
    """Documents of one chunk, so no other point tells that one is missing."""
    with closing(open_client(tmp_path / "store")) as client:
        _ingest(client, embedder, [Document(str(n), f"text {n}") for n in range(20)])
    file = tmp_path / "store" / "collection" / "docs" / "storage.sqlite"
    data = bytearray(file.read_bytes())
    pages = range(4096, len(data), 4096)
    leaf = next(page for page in pages if data[page] == 13 and data[page + 4] > 1)  # a leaf of the table
    data[leaf + 4] -= 1  # its number of rows
    file.write_bytes(data)
    with closing(open_client(tmp_path / "store")) as client:
        assert client.count("docs").count == 19
        found = _check(client)
    assert found and all(line.startswith(f"{file} is damaged (") for line in found)


@contextmanager
def _flipped(store: Path, file: Path, bit: int) -> Iterator[Path]:
    """A copy of a store with one bit of one file flipped."""
    copy = store.with_name("copy")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(store, copy, copy_function=_copy_sparsely)
    target = copy / file.relative_to(store)
    data = bytearray(target.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    target.write_bytes(data)
    yield copy


def _copy_sparsely(source: str, target: str) -> None:
    """Copy a file without its holes: an edge store has 160 MB of zeros."""
    with Path(source).open("rb") as original, Path(target).open("wb") as copy:
        copy.truncate(os.fstat(original.fileno()).st_size)
        while block := original.read(_BLOCK):
            if block.strip(b"\0"):
                copy.seek(original.tell() - len(block))
                copy.write(block)


def _state(client: QdrantClient) -> dict[Any, Any]:
    """Payloads and vectors by id, as exactly as they are compared: floats to 10 digits, vectors in 32 bits."""
    points, _ = client.scroll("docs", limit=999, with_payload=True, with_vectors=True)
    vectors: Any
    state = {}
    for point in points:
        vectors = point.vector
        payload = json.loads(json.dumps(point.payload), parse_float=lambda text: f"{float(text):.9e}")
        state[point.id] = payload, np.asarray(vectors[VECTOR], np.float32).tobytes()
    return state


@pytest.mark.filterwarnings("ignore:the store in:gircse_rag.errors.GircseWarning")  # the mark is among the files
@pytest.mark.parametrize(("engine", "bits"), [("local", 40), pytest.param("edge", 24, marks=pytest.mark.slow)])
def test_a_flipped_bit_is_harmless_or_found(tmp_path: Path, embedder: StandIn, engine: Any, bits: int) -> None:
    """Each flip: opening fails with a StoreError, `verify` finds it, or everything reads as before."""
    if engine == "edge":
        pytest.importorskip("qdrant_edge", reason="the edge extra is not installed")
    store = tmp_path / "store"
    with closing(open_client(store, engine=engine)) as client:
        _ingest(client, embedder)
        expected = _state(client)
    rng = random.Random(20261130)
    files = sorted(file for file in store.rglob("*") if file.is_file() and file.stat().st_size)
    for _ in range(bits):
        file = rng.choice(files)
        with _flipped(store, file, rng.randrange(8 * file.stat().st_size)) as copy:
            try:
                with closing(open_client(copy)) as client:
                    harmless = bool(verify("docs", client).damaged) or _state(client) == expected
            except GircseError as error:
                assert str(copy) in str(error) or "docs" in str(error)
            else:
                assert harmless, f"a flipped bit of {file} was not found"
