"""The edge store: what it promises beyond what every store does (`test_stores`)."""

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

from gircse_rag.errors import StoreError
from gircse_rag.qdrant import open_client
from tests.unit.qdrant.standin import StandIn

pytest.importorskip("qdrant_edge", reason="the edge extra is not installed")

from gircse_rag.qdrant.edge import EdgeClient
from gircse_rag.qdrant.edge import shard as shard_module
from gircse_rag.qdrant.edge.shard import RESERVED

DIMENSION, MANY = 1024, 2_700
"""So many points of this dimension are worth an index, and no more are."""
VECTORS = {"gircse": models.VectorParams(size=DIMENSION, distance=models.Distance.COSINE)}


@pytest.fixture
def client(tmp_path: Path) -> Iterator[EdgeClient]:
    made = open_client(tmp_path / "store", engine="edge")
    assert isinstance(made, EdgeClient)
    made.create_collection("docs", VECTORS, metadata={"of": {"whom": "ours"}})
    yield made
    made.close()


def _vectors(count: int, seed: int = 0) -> np.ndarray:
    """Unit rows in clumps, so that neighbours mean something."""
    chance = np.random.default_rng(seed)
    clumps = chance.standard_normal((20, DIMENSION))[chance.integers(0, 20, count)]
    rows = clumps + 0.6 * chance.standard_normal((count, DIMENSION))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def _points(vectors: np.ndarray, start: int = 0) -> list[models.PointStruct]:
    return [
        models.PointStruct(id=start + row, vector={"gircse": vector.tolist()}, payload={"row": start + row})
        for row, vector in enumerate(vectors)
    ]


def _write(client: QdrantClient, vectors: np.ndarray) -> None:
    for start in range(0, len(vectors), 300):
        client.upsert("docs", _points(vectors[start : start + 300], start))


def test_the_reserved_point_is_nobodys_answer(client: EdgeClient) -> None:
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
    """As LlamaIndex's own store does it."""
    sizes, upsert = [], client._store.upsert
    monkeypatch.setattr(client._store, "upsert", lambda name, points: sizes.append(len(points)) or upsert(name, points))
    client.upload_points("docs", iter(_points(_vectors(10))), batch_size=4, parallel=1, max_retries=3, wait=True)
    assert client.count("docs").count == 10 and sizes == [4, 4, 2]
    client.upload_points("docs", [])
    with pytest.raises(StoreError, match="does not know update_mode"):
        client.upload_points("docs", _points(_vectors(1)), update_mode=models.UpdateMode.INSERT_ONLY)


def test_vectors_come_back_bit_for_bit(client: EdgeClient, tmp_path: Path) -> None:
    vectors = _vectors(300)
    _write(client, vectors)
    client.close()
    again = open_client(tmp_path / "store", create=False)
    records, _ = again.scroll("docs", limit=1000, with_vectors=True)
    again.close()
    for record in records:
        assert isinstance(record.vector, dict) and isinstance(record.id, int)
        np.testing.assert_allclose(np.float32(record.vector["gircse"]), vectors[record.id], rtol=0, atol=6e-8)


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

    asking = threading.Thread(target=ask)
    asking.start()
    before = time.monotonic()
    grew = client.build_index("docs")
    took = time.monotonic() - before
    stopped.set()
    asking.join()
    assert grew and set(answers) == {7} and len(answers) > 5
    assert gaps[0] < took / 2  # held for the whole time it would have been all of it
    info = client.get_collection("docs")
    assert (info.points_count, info.indexed_vectors_count) == (MANY, MANY)
    found = [client.query_points("docs", v.tolist(), using="gircse", limit=10).points for v in vectors[MANY:]]
    exact = np.argsort(-(vectors[MANY:] @ vectors[:MANY].T), axis=1)[:, :10]
    recall = np.mean([len({hit.id for hit in hits} & set(row)) / 10 for hits, row in zip(found, exact, strict=True)])
    assert recall > 0.9
    assert not client.build_index("docs")
    assert len(list((tmp_path / "store/collections/docs").glob("shard-*"))) == 1


def test_a_write_outdates_the_index_under_way_and_is_kept(
    client: EdgeClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(client, _vectors(MANY))
    _meanwhile(monkeypatch, lambda: client.upsert("docs", _points(_vectors(1, seed=1), 50_000)))
    assert not client.build_index("docs")
    assert client.count("docs").count == MANY + 1 and client.retrieve("docs", [50_000])
    assert len(list((tmp_path / "store/collections/docs").glob("shard-*"))) == 1


def test_an_index_that_fails_changes_nothing(client: EdgeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(client, _vectors(MANY))
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(StoreError, match=r"indexing .* failed; it is as it was"):
        client.build_index("docs")
    assert client.count("docs").count == MANY


class _Engine:
    """An engine's shard, of which a test replaces a method."""

    def __init__(self, engine: object) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> object:
        return getattr(self._engine, name)


@pytest.mark.parametrize("moment", ["before `current` is replaced", "after it", "while the old one is closed"])
def test_an_interrupt_while_the_index_is_put_in_place_loses_nothing(
    client: EdgeClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    _write(client, _vectors(MANY))
    shard = client._store.shard("docs")

    class Interrupting(_Engine):
        def close(self) -> None:
            self.close = self._engine.close  # type: ignore[method-assign,attr-defined]  # interrupted once
            raise KeyboardInterrupt

    def replace_text(path: Path, text: str) -> None:
        if not moment.startswith("before"):
            plain(path, text)
        if not moment.startswith("while"):
            raise KeyboardInterrupt

    plain = shard_module.replace_text
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


def test_a_collection_that_two_threads_make_is_made_once(client: EdgeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    make, second_makes, first_wrote = shard_module.EdgeShard.create, threading.Event(), threading.Event()
    making: list[Path] = []

    def create(folder: Path, about: dict[str, Any]) -> shard_module.EdgeShard:
        making.append(folder)
        if len(making) == 1:
            second_makes.wait(0.3)  # time enough for one that nothing holds back
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
        with pytest.raises(StoreError, match="'new' is there already"):
            two.result(60)
    assert client.count("new").count == 1 and client.retrieve("new", [0])


@pytest.mark.parametrize("change", ["aliases", "metadata"])
def test_what_two_threads_change_has_both_changes(
    client: EdgeClient, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    first, second = threading.Event(), threading.Event()

    def held(plain: Callable[..., Any]) -> Callable[..., Any]:
        """The first to have read what is there waits a little for the second to read it as well."""

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
        wanted = models.CreateAlias(collection_name="docs", alias_name=name)
        client.update_collection_aliases([models.CreateAliasOperation(create_alias=wanted)])

    with monkeypatch.context() as patch, ThreadPoolExecutor(2) as threads:
        if change == "metadata":
            shard = client._store.shard("docs")
            patch.setattr(shard, "write", held(shard.write))
        else:
            patch.setattr(client._store, "_save", held(client._store._save))
        list(threads.map(run, ["a", "b"]))
    if change == "metadata":
        assert client.get_collection("docs").config.metadata == {"of": {"whom": "ours"}, "a": 1, "b": 1}
    else:
        assert {alias.alias_name for alias in client.get_aliases().aliases} == {"a", "b"}


@pytest.mark.parametrize("broken", ["docs", "more"])
def test_a_shard_that_cannot_be_closed_keeps_nothing_else_open(client: EdgeClient, tmp_path: Path, broken: str) -> None:
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


def _meanwhile(monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> None:
    """Do this while `build_index` waits for its child."""
    run = subprocess.run

    def acting(*arguments: object, **options: object) -> object:
        action()
        return run(*arguments, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "run", acting)


def test_a_store_closed_while_it_is_indexed_is_as_it_was(
    client: EdgeClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(client, _vectors(MANY))
    _meanwhile(monkeypatch, client.close)
    with pytest.raises(StoreError, match="was closed or deleted"):
        client.build_index("docs")
    assert len(list((tmp_path / "store/collections/docs").glob("shard-*"))) == 1
    again = open_client(tmp_path / "store", create=False)
    assert again.count("docs").count == MANY
    again.close()


def test_a_collection_deleted_while_it_is_indexed_is_gone(
    client: EdgeClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if the child writes another file just when its folder has been emptied."""
    _write(client, _vectors(MANY))
    folder, remove = tmp_path / "store/collections/docs", os.rmdir
    late: list[Path] = []

    def removing(path: str, **options: Any) -> None:
        copies = {there.name for there in folder.glob("shard-*")} - {client_shard}
        if not late and Path(path).name in copies:
            late.append(folder / Path(path).name / "late")
            late[0].write_text("...")
        remove(path, **options)

    client_shard = (folder / "current").read_text()
    monkeypatch.setattr(os, "rmdir", removing)
    _meanwhile(monkeypatch, lambda: client.delete_collection("docs"))
    with pytest.raises(StoreError, match="was closed or deleted"):
        client.build_index("docs")
    assert late and not client.collection_exists("docs") and not list(folder.glob("shard-*"))
    client.create_collection("docs", VECTORS)
    assert client.count("docs").count == 0


@pytest.mark.parametrize("opened", [True, False])
def test_a_folder_that_cannot_be_removed_is_named(
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


def test_what_cannot_be_opened_leaves_the_other_shards(client: EdgeClient, tmp_path: Path) -> None:
    _write(client, _vectors(10))
    client.close()
    current = tmp_path / "store/collections/docs/current"
    whole = current.read_text()
    current.write_text("shard-gone")
    again = open_client(tmp_path / "store")
    with pytest.raises(StoreError, match="restore it"):
        again.count("docs")
    again.close()
    current.write_text(whole)
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


def test_kills_lose_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    """Each time later than the last one ended: while it writes, at 2,800 while it indexes, and after that."""
    store, there = tmp_path / "store", 0
    for lines, pause in ((9, 0.01), (20, 0.3), (3, 0.0)):
        writer = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WRITER), str(store)], stdout=subprocess.PIPE, cwd=Path.cwd()
        )
        assert writer.stdout is not None
        said = [int(writer.stdout.readline()) for _ in range(lines)]
        time.sleep(pause)
        os.kill(writer.pid, signal.SIGKILL)
        said += [int(line) for line in writer.communicate()[0].split()]
        client = open_client(store, create=False)
        ids = {record.id for record in client.scroll("docs", limit=10**6)[0]}
        client.close()
        assert ids == set(range(len(ids))) and len(ids) % 100 == 0  # batches are whole
        assert max(said) <= len(ids) <= max(said) + 100 and len(ids) > there
        there = len(ids)


def test_a_collection_killed_while_it_is_made_is_not_there(client: EdgeClient, tmp_path: Path) -> None:
    half = tmp_path / "store/collections/half/shard-0"
    half.mkdir(parents=True)
    (half / "junk").write_text("...")
    assert not client.collection_exists("half")
    assert [there.name for there in client.get_collections().collections] == ["docs"]
    client.create_collection("half", VECTORS)
    assert client.count("half").count == 0


def test_an_index_killed_half_way_is_cleared_away(client: EdgeClient, tmp_path: Path) -> None:
    _write(client, _vectors(10))
    client.close()
    left = tmp_path / "store/collections/docs/shard-left"
    left.mkdir()
    again = open_client(tmp_path / "store")
    assert again.count("docs").count == 10 and not left.exists()
    again.close()


def test_one_process_at_a_time(client: EdgeClient, tmp_path: Path) -> None:
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


def test_a_closed_store_says_so(client: EdgeClient) -> None:
    client.close()
    with pytest.raises(StoreError, match="was closed"):
        client.count("docs")


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda c: c.count("other"), "no collection 'other'"),
        (lambda c: c.create_collection("docs", VECTORS), "there already"),
        (lambda c: c.create_collection("new", VECTORS, shard_number=2), "does not know shard_number"),
        (lambda c: c.create_collection("new", VECTORS["gircse"]), "named vectors"),
        (lambda c: c.upsert("docs", _points(np.ones((1, 3)))), "dimension"),
        (lambda c: c.query_points("docs", [1.0] * 3, using="gircse"), "dimension"),
        (lambda c: c.query_points("docs", 7, using="gircse"), "by a dense vector"),
        (lambda c: c.query_points("docs", [1.0] * 64, using="gircse", prefetch=models.Prefetch()), "prefetch"),
        (lambda c: c.upsert("docs", _points(_vectors(1)), update_mode=models.UpdateMode.INSERT_ONLY), "update_mode"),
    ],
)
def test_what_it_cannot_do_is_an_error(client: EdgeClient, use: object, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        use(client)  # type: ignore[operator]


def test_a_damaged_shard_is_named(client: EdgeClient, tmp_path: Path) -> None:
    _write(client, _vectors(10))
    client.close()
    for config in (tmp_path / "store/collections/docs").rglob("*.json"):
        config.write_text("{")
    again = open_client(tmp_path / "store")
    with pytest.raises(StoreError, match=r"collections/docs.*restore it"):
        again.count("docs")
    again.close()


def test_ingest_and_search_take_it(tmp_path: Path, embedder: StandIn) -> None:
    from gircse_rag.qdrant import Document, ingest, search

    client = open_client(tmp_path / "ingested", engine="edge")
    documents = [Document(str(n), f"text number {n}") for n in range(30)]
    for expected in (30, 0):
        report = ingest(documents, collection="docs", embedder=embedder, client=client)  # type: ignore[arg-type]
        assert (report.added, report.unchanged) == (expected, 30 - expected)
    hits = search("text number 7", collection="docs", embedder=embedder, client=client, limit=1)  # type: ignore[arg-type]
    assert [hit.document for hit in hits] == ["7"]
    client.close()
