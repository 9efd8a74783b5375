"""Behaviour of the edge store beyond what all stores share (`test_stores`)."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qdrant_client import QdrantClient, models

from gircse_rag.errors import InputError, StoreError
from gircse_rag.qdrant import durable, open_client
from tests.stand_in import StandIn

pytest.importorskip("qdrant_edge", reason="the edge extra is not installed")

from gircse_rag.qdrant.edge import EdgeClient
from gircse_rag.qdrant.edge import shard as shard_module
from gircse_rag.qdrant.edge.shard import RESERVED

DIMENSION, MANY = 1024, 2_700
"""Just enough points of this dimension for `build_index` to build an index."""
VECTORS = {"gircse": models.VectorParams(size=DIMENSION, distance=models.Distance.COSINE)}


@pytest.fixture
def client(tmp_path: Path) -> Iterator[EdgeClient]:
    client = open_client(tmp_path / "store", engine="edge")
    assert isinstance(client, EdgeClient)
    client.create_collection("docs", VECTORS, metadata={"of": {"whom": "ours"}})
    yield client
    client.close()


def _vectors(count: int, seed: int = 0) -> np.ndarray:
    """(count, DIMENSION) float32 unit vectors in clusters, so that nearest neighbours are well defined."""
    rng = np.random.default_rng(seed)
    clusters = rng.standard_normal((20, DIMENSION))[rng.integers(0, 20, count)]
    rows = clusters + 0.6 * rng.standard_normal((count, DIMENSION))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def _points(vectors: np.ndarray, start: int = 0) -> list[models.PointStruct]:
    return [
        models.PointStruct(id=start + row, vector={"gircse": vector.tolist()}, payload={"row": start + row})
        for row, vector in enumerate(vectors)
    ]


def _write(client: QdrantClient, vectors: np.ndarray) -> None:
    for start in range(0, len(vectors), 300):
        client.upsert("docs", _points(vectors[start : start + 300], start))


def test_the_reserved_point_is_never_returned(client: EdgeClient) -> None:
    _write(client, _vectors(5))
    ids = {0, 1, 2, 3, 4}
    assert client.count("docs").count == 5 and client.get_collection("docs").points_count == 5
    records, offset = client.scroll("docs", limit=100)
    assert {record.id for record in records} == ids and offset is None
    query = _vectors(1)[0].tolist()
    assert {hit.id for hit in client.query_points("docs", query, using="gircse", limit=100).points} == ids
    nothing = models.Filter(must_not=[models.FieldCondition(key="row", range=models.Range(gte=0))])
    assert client.query_points("docs", query, using="gircse", query_filter=nothing, limit=100).points == []
    assert client.scroll("docs", nothing)[0] == [] and client.count("docs", nothing).count == 0
    assert client.retrieve("docs", [RESERVED, 0]) == client.retrieve("docs", [0])
    client.delete("docs", models.PointIdsList(points=[RESERVED]))
    client.delete("docs", models.FilterSelector(filter=nothing))
    client.delete("docs", models.FilterSelector(filter=models.Filter()))
    assert client.count("docs").count == 0
    assert client.get_collection("docs").config.metadata == {"of": {"whom": "ours"}}


def test_points_are_uploaded_in_batches(client: EdgeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the arguments that LlamaIndex's Qdrant store passes."""
    sizes: list[int] = []
    upsert = client._store.upsert

    def record(name: str, points: Any) -> object:
        sizes.append(len(points))
        return upsert(name, points)

    monkeypatch.setattr(client._store, "upsert", record)
    client.upload_points("docs", iter(_points(_vectors(10))), batch_size=4, parallel=1, max_retries=3, wait=True)
    assert client.count("docs").count == 10 and sizes == [4, 4, 2]
    client.upload_points("docs", [])
    with pytest.raises(StoreError, match="does not know update_mode"):
        client.upload_points("docs", _points(_vectors(1)), update_mode=models.UpdateMode.INSERT_ONLY)


def test_vectors_survive_reopening(client: EdgeClient, tmp_path: Path) -> None:
    vectors = _vectors(300)
    _write(client, vectors)
    client.close()
    again = open_client(tmp_path / "store", create=False)
    records, _ = again.scroll("docs", limit=1000, with_vectors=True)
    again.close()
    for record in records:
        assert isinstance(record.vector, dict) and isinstance(record.id, int)
        stored = np.asarray(record.vector["gircse"], np.float32)
        np.testing.assert_allclose(stored, vectors[record.id], rtol=0, atol=6e-8)


@pytest.mark.slow
def test_the_index_is_built_in_another_process_while_searches_go_on(client: EdgeClient, tmp_path: Path) -> None:
    vectors = _vectors(MANY + 20)
    _write(client, vectors[:MANY])
    assert client.get_collection("docs").indexed_vectors_count == 0
    stopped, gaps, answers = threading.Event(), [0.0], []

    def ask() -> None:
        last = time.monotonic()
        while not stopped.is_set():
            answers.append(client.query_points("docs", vectors[7].tolist(), using="gircse", limit=1).points[0].id)
            gaps[0] = max(gaps[0], time.monotonic() - last)
            last = time.monotonic()

    thread = threading.Thread(target=ask)
    thread.start()
    before = time.monotonic()
    built = client.build_index("docs")
    took = time.monotonic() - before
    stopped.set()
    thread.join()
    assert built and set(answers) == {7} and len(answers) > 5
    assert gaps[0] < took / 2  # a search blocked by the build would have waited about `took`
    info = client.get_collection("docs")
    assert (info.points_count, info.indexed_vectors_count) == (MANY, MANY)
    found = [client.query_points("docs", v.tolist(), using="gircse", limit=10).points for v in vectors[MANY:]]
    exact = np.argsort(-(vectors[MANY:] @ vectors[:MANY].T), axis=1)[:, :10]
    recall = np.mean([len({hit.id for hit in hits} & set(row)) / 10 for hits, row in zip(found, exact, strict=True)])
    assert recall > 0.9
    assert not client.build_index("docs")
    assert len(list((tmp_path / "store/collections/docs").glob("shard-*"))) == 1


@pytest.mark.slow
def test_a_write_during_indexing_discards_the_index_and_is_kept(
    client: EdgeClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(client, _vectors(MANY))
    _run_during_indexing(monkeypatch, lambda: client.upsert("docs", _points(_vectors(1, seed=1), 50_000)))
    assert not client.build_index("docs")
    assert client.count("docs").count == MANY + 1 and client.retrieve("docs", [50_000])
    assert len(list((tmp_path / "store/collections/docs").glob("shard-*"))) == 1


def test_an_index_that_fails_changes_nothing(client: EdgeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(client, _vectors(MANY))
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(StoreError, match=r"indexing .* failed; it is unchanged"):
        client.build_index("docs")
    assert client.count("docs").count == MANY


class _Engine:
    """Wraps an engine's shard so that a test can replace a method."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before `current` is replaced", "after it", "while the old one is closed"])
def test_an_interrupt_while_the_index_is_swapped_in_loses_nothing(
    client: EdgeClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    _write(client, _vectors(MANY))
    shard = client._store.shard("docs")

    class Interrupting(_Engine):
        def close(self) -> None:
            self.close = self._engine.close  # type: ignore[method-assign]  # interrupt only once
            raise KeyboardInterrupt

    def replace_text(path: Path, text: str) -> None:
        if not moment.startswith("before"):
            plain(path, text)
        if not moment.startswith("while"):
            raise KeyboardInterrupt

    plain = durable.replace_text
    if moment.startswith("while"):
        shard._engine = Interrupting(shard._engine)  # type: ignore[assignment]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shard_module, "replace_text", replace_text)
        client.build_index("docs")
    client.upsert("docs", _points(_vectors(1, seed=1), 50_000))
    client.close()
    again = open_client(tmp_path / "store", create=False)
    assert again.count("docs").count == MANY + 1 and again.retrieve("docs", [50_000])
    again.close()
    assert len(list((tmp_path / "store/collections/docs").glob("shard-*"))) == 1


def test_a_collection_that_two_threads_create_is_created_once(
    client: EdgeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, second_makes, first_wrote = shard_module.EdgeShard.create, threading.Event(), threading.Event()
    making: list[Path] = []

    def create(folder: Path, about: dict[str, Any]) -> shard_module.EdgeShard:
        making.append(folder)
        if len(making) == 1:
            second_makes.wait(0.3)  # long enough for a second call that is not locked out
        else:
            second_makes.set()
            first_wrote.wait(30)
        return make(folder, about)

    def first() -> None:
        client.create_collection("new", VECTORS)
        client.upsert("new", _points(_vectors(1)))
        first_wrote.set()

    monkeypatch.setattr(shard_module.EdgeShard, "create", create)
    with ThreadPoolExecutor(2) as threads:
        one = threads.submit(first)
        while not making:
            time.sleep(0.01)
        two = threads.submit(client.create_collection, "new", VECTORS)
        one.result(60)
        with pytest.raises(StoreError, match="'new' already exists"):
            two.result(60)
    assert client.count("new").count == 1 and client.retrieve("new", [0])


@pytest.mark.parametrize("change", ["aliases", "metadata"])
def test_concurrent_changes_by_two_threads_are_both_kept(
    client: EdgeClient, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    first, second = threading.Event(), threading.Event()

    def delay_first(plain: Callable[..., Any]) -> Callable[..., Any]:
        """Make the first call wait briefly, so that a second one without a lock would read the old value."""

        def call(*args: Any) -> Any:
            if first.is_set():
                second.set()
            else:
                first.set()
                second.wait(0.3)
            return plain(*args)

        return call

    def run(name: str) -> None:
        if change == "metadata":
            client.update_collection("docs", metadata={name: 1})
            return
        alias = models.CreateAlias(collection_name="docs", alias_name=name)
        client.update_collection_aliases([models.CreateAliasOperation(create_alias=alias)])

    with monkeypatch.context() as patch, ThreadPoolExecutor(2) as threads:
        if change == "metadata":
            shard = client._store.shard("docs")
            patch.setattr(shard, "write", delay_first(shard.write))
        else:
            patch.setattr(client._store, "_save", delay_first(client._store._save))
        list(threads.map(run, ["a", "b"]))
    if change == "metadata":
        assert client.get_collection("docs").config.metadata == {"of": {"whom": "ours"}, "a": 1, "b": 1}
    else:
        assert {alias.alias_name for alias in client.get_aliases().aliases} == {"a", "b"}


@pytest.mark.parametrize("broken", ["docs", "more"])
def test_a_shard_that_fails_to_close_does_not_keep_others_open(client: EdgeClient, tmp_path: Path, broken: str) -> None:
    client.create_collection("more", VECTORS)
    for name in ("docs", "more"):
        client.upsert(name, _points(_vectors(3)))
    shards = dict(client._store._shards)

    class Full(_Engine):
        def flush(self) -> None:
            raise Exception("no space left")

    shards[broken]._engine = Full(shards[broken]._engine)  # type: ignore[assignment]
    with pytest.raises(StoreError, match=rf"collections/{broken}: no space left"):
        client.close()
    for shard in shards.values():
        with pytest.raises(StoreError, match="was closed or deleted"), shard.engine():
            pass
    again = open_client(tmp_path / "store")
    assert [again.count(name).count for name in ("docs", "more")] == [3, 3]
    again.close()


def _run_during_indexing(monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> None:
    """Run the action while `build_index` waits for its child process."""
    run = subprocess.run

    def acting(*arguments: Any, **options: Any) -> Any:
        action()
        return run(*arguments, **options)

    monkeypatch.setattr(subprocess, "run", acting)


@pytest.mark.slow
def test_a_store_closed_while_it_is_indexed_is_unchanged(
    client: EdgeClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(client, _vectors(MANY))
    _run_during_indexing(monkeypatch, client.close)
    with pytest.raises(StoreError, match="was closed or deleted"):
        client.build_index("docs")
    assert len(list((tmp_path / "store/collections/docs").glob("shard-*"))) == 1
    again = open_client(tmp_path / "store", create=False)
    assert again.count("docs").count == MANY
    again.close()


@pytest.mark.slow
def test_a_collection_deleted_while_it_is_indexed_is_gone(
    client: EdgeClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if the child writes another file after its folder was emptied."""
    _write(client, _vectors(MANY))
    folder, remove = tmp_path / "store/collections/docs", os.rmdir
    late: list[Path] = []

    def removing(path: str, **options: Any) -> None:
        copies = {copy.name for copy in folder.glob("shard-*")} - {current_shard}
        if not late and Path(path).name in copies:
            late.append(folder / Path(path).name / "late")
            late[0].write_text("...")
        remove(path, **options)

    current_shard = (folder / "current").read_text()
    monkeypatch.setattr(os, "rmdir", removing)
    _run_during_indexing(monkeypatch, lambda: client.delete_collection("docs"))
    with pytest.raises(StoreError, match="was closed or deleted"):
        client.build_index("docs")
    assert late and not client.collection_exists("docs") and not list(folder.glob("shard-*"))
    client.create_collection("docs", VECTORS)
    assert client.count("docs").count == 0


@pytest.mark.parametrize("opened", [True, False])
def test_a_folder_that_cannot_be_removed_is_reported(
    client: EdgeClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: bool
) -> None:
    if not opened:
        client._store._shards.pop("docs").close()
    remove = os.rmdir

    def busy(path: str, **options: Any) -> None:
        if Path(path).name.startswith("shard-"):
            raise OSError(errno.EBUSY, "busy")
        remove(path, **options)

    with monkeypatch.context() as patch, pytest.raises(StoreError, match=r"collections/docs: .*busy"):
        patch.setattr(os, "rmdir", busy)
        client.delete_collection("docs")
    assert not client.collection_exists("docs")
    client.create_collection("docs", VECTORS)
    assert client.count("docs").count == 0


def test_a_collection_that_cannot_be_opened_keeps_its_shards(client: EdgeClient, tmp_path: Path) -> None:
    _write(client, _vectors(10))
    client.close()
    current = tmp_path / "store/collections/docs/current"
    original = current.read_text()
    current.write_text("shard-gone")
    again = open_client(tmp_path / "store")
    with pytest.raises(StoreError, match="restore it"):
        again.count("docs")
    again.close()
    current.write_text(original)
    again = open_client(tmp_path / "store")
    assert again.count("docs").count == 10
    again.close()


WRITER = """
    import os, sys
    import numpy as np
    from qdrant_client import models
    from gircse_rag.qdrant.edge.edge_client import EdgeClient

    client = EdgeClient(sys.argv[1])
    if not client.collection_exists("docs"):
        params = models.VectorParams(size=1024, distance=models.Distance.COSINE)
        client.create_collection("docs", {"gircse": params}, metadata={"a": 1})
    done = client.count("docs").count
    while True:
        vectors = np.random.default_rng(done).standard_normal((100, 1024)).tolist()
        points = [models.PointStruct(id=done + n, vector={"gircse": v}, payload={}) for n, v in enumerate(vectors)]
        client.upsert("docs", points)
        done += 100
        os.write(1, b"%d\\n" % done)
        if done % 2800 == 0:
            os.write(1, b"0\\n")
            client.build_index("docs")
            os.write(1, b"%d\\n" % done)
"""


@pytest.mark.slow
def test_kills_lose_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    """Kills in turn during the first writes, while an index is built at 2,800 points, and after that."""
    store, before = tmp_path / "store", 0
    for lines, pause in ((9, 0.01), (20, 0.3), (3, 0.0)):
        writer = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WRITER), str(store)], stdout=subprocess.PIPE, cwd=Path.cwd()
        )
        assert writer.stdout is not None
        reported = [int(writer.stdout.readline()) for _ in range(lines)]
        time.sleep(pause)
        os.kill(writer.pid, signal.SIGKILL)
        reported += [int(line) for line in writer.communicate()[0].split()]
        client = open_client(store, create=False)
        ids = {record.id for record in client.scroll("docs", limit=10**6)[0]}
        client.close()
        assert ids == set(range(len(ids))) and len(ids) % 100 == 0  # no partial batch
        assert max(reported) <= len(ids) <= max(reported) + 100 and len(ids) > before
        before = len(ids)


def test_a_collection_killed_during_its_creation_does_not_exist(client: EdgeClient, tmp_path: Path) -> None:
    half = tmp_path / "store/collections/half/shard-0"
    half.mkdir(parents=True)
    (half / "junk").write_text("...")
    assert not client.collection_exists("half")
    assert [collection.name for collection in client.get_collections().collections] == ["docs"]
    client.create_collection("half", VECTORS)
    assert client.count("half").count == 0


def test_the_leftovers_of_a_killed_build_index_are_removed(client: EdgeClient, tmp_path: Path) -> None:
    _write(client, _vectors(10))
    client.close()
    leftover = tmp_path / "store/collections/docs/shard-leftover"
    leftover.mkdir()
    again = open_client(tmp_path / "store")
    assert again.count("docs").count == 10 and not leftover.exists()
    again.close()


def test_only_one_client_can_open_a_store(client: EdgeClient, tmp_path: Path) -> None:
    store = tmp_path / "store"
    with pytest.raises(StoreError, match="is already open"):
        open_client(store)
    client.close()
    hold = f"held = filelock.FileLock({str(store / '.lock')!r})\nheld.acquire()"
    program = f"import filelock\n{hold}\nprint(flush=True)\ninput()"
    holder = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    holder.stdout.readline()
    with pytest.raises(StoreError, match="is already open"):
        open_client(store)
    holder.kill()
    holder.communicate()
    open_client(store).close()


def test_a_closed_store_raises(client: EdgeClient) -> None:
    client.close()
    with pytest.raises(StoreError, match="was closed"):
        client.count("docs")


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda c: c.count("other"), "no collection 'other'"),
        (lambda c: c.create_collection("docs", VECTORS), "already exists"),
        (lambda c: c.create_collection("new", VECTORS, shard_number=2), "does not know shard_number"),
        (lambda c: c.create_collection("new", VECTORS["gircse"]), "named vectors"),
        (lambda c: c.upsert("docs", _points(np.ones((1, 3)))), "dimension"),
        (lambda c: c.query_points("docs", [1.0] * 3, using="gircse"), "dimension"),
        (lambda c: c.query_points("docs", 7, using="gircse"), "by a dense vector"),
        (lambda c: c.query_points("docs", [1.0] * 64, using="gircse", prefetch=models.Prefetch()), "prefetch"),
        (lambda c: c.upsert("docs", _points(_vectors(1)), update_mode=models.UpdateMode.INSERT_ONLY), "update_mode"),
    ],
)
def test_unsupported_calls_raise(client: EdgeClient, use: Callable[[Any], object], message: str) -> None:
    with pytest.raises(StoreError, match=message):
        use(client)


def test_a_damaged_shard_is_reported(client: EdgeClient, tmp_path: Path) -> None:
    _write(client, _vectors(10))
    client.close()
    for config in (tmp_path / "store/collections/docs").rglob("*.json"):
        config.write_text("{")
    again = open_client(tmp_path / "store")
    with pytest.raises(StoreError, match=r"collections/docs.*restore it"):
        again.count("docs")
    again.close()


def test_ingest_and_search_work_on_an_edge_store(tmp_path: Path, embedder: StandIn) -> None:
    from gircse_rag.qdrant import Document, ingest, search

    client = open_client(tmp_path / "ingested", engine="edge")
    documents = [Document(str(n), f"text number {n}") for n in range(30)]
    for expected in (30, 0):
        report = ingest(documents, collection="docs", embedder=embedder, client=client)
        assert (report.added, report.unchanged) == (expected, 30 - expected)
    hits = search("text number 7", collection="docs", embedder=embedder, client=client, limit=1)
    assert [hit.document for hit in hits] == ["7"]
    client.close()


@pytest.mark.parametrize("outside", ["../../other/collections/docs", "../collections/docs", "é" * 200])
def test_no_name_leads_out_of_the_store(client: EdgeClient, tmp_path: Path, outside: str) -> None:
    other = open_client(tmp_path / "other", engine="edge")
    other.create_collection("docs", VECTORS)
    other.upsert("docs", _points(_vectors(3)))
    other.close()
    query, here = _vectors(1)[0].tolist(), models.PointIdsList(points=[0])
    point_methods: list[Callable[[], object]] = [
        lambda: client.get_collection(outside),
        lambda: client.update_collection(outside, metadata={"a": 1}),
        lambda: client.upsert(outside, _points(_vectors(1))),
        lambda: client.upload_points(outside, _points(_vectors(1))),
        lambda: client.set_payload(outside, {"a": 1}, points=[0]),
        lambda: client.delete(outside, here),
        lambda: client.create_payload_index(outside, "row", models.PayloadSchemaType.INTEGER),
        lambda: client.retrieve(outside, [0]),
        lambda: client.scroll(outside),
        lambda: client.count(outside),
        lambda: client.query_points(outside, query, using="gircse"),
        lambda: client.query_batch_points(outside, [models.QueryRequest(query=query, using="gircse")]),
        lambda: client.query_points_groups(outside, "row", query, using="gircse"),
        lambda: client.build_index(outside),
        lambda: client.update_collection_aliases([_create_alias("alias", outside)]),
    ]
    for use in point_methods:
        with pytest.raises(StoreError, match="no collection"):
            use()
    assert not client.collection_exists(outside) and not client.delete_collection(outside)
    with pytest.raises(InputError, match="a collection cannot be called"):
        client.create_collection(outside, VECTORS)
    with pytest.raises(InputError, match="an alias cannot be called"):
        client.update_collection_aliases([_create_alias(outside, "docs")])
    assert client.get_aliases().aliases == []
    other = open_client(tmp_path / "other", create=False)
    assert other.count("docs").count == 3
    other.close()


def _create_alias(alias: str, collection: str) -> models.CreateAliasOperation:
    return models.CreateAliasOperation(create_alias=models.CreateAlias(collection_name=collection, alias_name=alias))
