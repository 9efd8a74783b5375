"""Opening a local store: its lock, and `meta.json` on a full disk or after a kill."""

from __future__ import annotations

import pickle
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from qdrant_client import QdrantClient

from gircse_rag.errors import GircseWarning, StoreError
from gircse_rag.qdrant import Document, create_collection, ingest, migrate, open_client, verify
from gircse_rag.qdrant.local import META
from tests.disk import SmallDisks
from tests.stand_in import StandIn

_DOCUMENTS = [Document(str(number), f"text {number}") for number in range(20)]

_SLOW_OPENER = """
    import sys
    import portalocker
    from gircse_rag.errors import GircseWarning, StoreError
    from gircse_rag.qdrant import Document, ingest, open_client
    from tests.stand_in import StandIn

    lock = portalocker.lock

    def lock_when_told(*arguments, **options):
        print("everything is read", flush=True)
        input()
        lock(*arguments, **options)

    portalocker.lock = lock_when_told
    try:
        client = open_client(sys.argv[1])
    except StoreError as error:
        sys.exit(str(error))
    ingest([Document("late", "text")], collection="second", embedder=StandIn(), client=client)
    client.close()
"""


@contextmanager
def _start(program: str, store: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), str(store)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path.cwd(),
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _finish_first_collection(client: QdrantClient) -> None:
    assert ingest(_DOCUMENTS, collection="first", embedder=StandIn(), client=client).added == 20


def _finish_migration(client: QdrantClient) -> None:
    ingest(_DOCUMENTS, collection="old", embedder=StandIn(), client=client)
    assert migrate("old", "new", embedder=StandIn(temperature=0.5), client=client, alias="first").alias_moved


@pytest.mark.slow
@pytest.mark.parametrize("work", [_finish_first_collection, _finish_migration])
@pytest.mark.parametrize("open_first", [open_client, lambda path: QdrantClient(path=str(path))])
def test_what_a_process_finishes_while_another_opens_the_store_stays(
    tmp_path: Path, open_first: Callable[[Path], QdrantClient], work: Callable[[QdrantClient], None]
) -> None:
    client = open_first(tmp_path / "store")
    with _start(_SLOW_OPENER, tmp_path / "store") as opener:
        assert opener.stdout is not None
        opener.stdout.readline()  # the opener has read the store, or has been refused
        work(client)
        client.close()
        _, message = opener.communicate("\n", timeout=120)
    assert opener.returncode == 1 and "is already open" in message
    again = open_client(tmp_path / "store", create=False)
    assert again.count("first").count == 20
    again.close()


@pytest.mark.slow
def test_the_store_is_locked_before_its_points_are_read(tmp_path: Path) -> None:
    """New points leave `meta.json` as it is, so only the lock keeps the opener from working with the old ones."""
    client = open_client(tmp_path / "store")
    _finish_first_collection(client)
    with _start(_SLOW_OPENER, tmp_path / "store") as opener:
        assert opener.stdout is not None
        opener.stdout.readline()  # the opener has read the store, or has been refused
        ingest([Document("new", "text")], collection="first", embedder=StandIn(), client=client)
        client.close()
        _, message = opener.communicate("\n", timeout=120)
    assert opener.returncode == 1 and "is already open" in message


@pytest.mark.slow
def test_a_killed_process_releases_the_store(tmp_path: Path) -> None:
    program = """
        import sys
        from gircse_rag.qdrant import open_client
        client = open_client(sys.argv[1])
        print("open", flush=True)
        input()
    """
    with _start(program, tmp_path / "store") as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "open\n"
        with pytest.raises(StoreError, match="is already open"):
            open_client(tmp_path / "store")
        holder.send_signal(signal.SIGKILL)
        holder.wait(30)
        open_client(tmp_path / "store").close()


def test_a_store_can_be_opened_again_once_it_is_closed_by_any_thread(tmp_path: Path) -> None:
    for _ in range(2):
        client = open_client(tmp_path)
        for _ in range(2):
            with pytest.raises(StoreError, match="is already open"):
                open_client(tmp_path)
        closer = threading.Thread(target=client.close)
        closer.start()
        closer.join()
    client.close()  # a second time


def test_a_store_that_cannot_be_opened_is_not_locked(tmp_path: Path) -> None:
    (tmp_path / META).write_text("{")
    for _ in range(2):
        with pytest.raises(StoreError, match=rf"{META} is damaged \(JSONDecodeError: .*restore it from a backup"):
            open_client(tmp_path)
    (tmp_path / META).unlink()
    open_client(tmp_path).close()


# meta.json


def test_a_full_disk_at_first_use_leaves_a_folder_that_can_be_opened_later(small_disks: SmallDisks) -> None:
    disk = small_disks.mount("1m")
    with pytest.raises(OSError, match="No space left"):
        (disk / "filler").write_bytes(b"x" * 2**21)
    with pytest.raises(StoreError, match=r"store cannot be opened .*No space left"):
        open_client(disk / "store")
    assert not (disk / "store" / META).exists()
    small_disks.resize(disk, "20m")
    client = open_client(disk / "store")
    assert ingest(_DOCUMENTS, collection="docs", embedder=StandIn(), client=client).added == 20
    client.close()


def test_an_empty_meta_file_is_replaced_if_there_is_no_collection(tmp_path: Path) -> None:
    (tmp_path / META).touch()
    client = open_client(tmp_path, create=False)
    assert client.get_collections().collections == []
    create_collection(client, "docs", StandIn())
    client.close()
    (tmp_path / META).write_text("")
    with pytest.raises(StoreError, match=r"meta\.json is empty, but there are collections"):
        open_client(tmp_path)
    assert (tmp_path / META).read_text() == ""


# Damage


def _damage_page(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[4096:4200] = bytes(104)
    file.write_bytes(data)


@pytest.mark.parametrize("damage", [_damage_page, lambda file: file.write_bytes(b"x" * 5000)])
def test_a_damaged_file_is_named_with_a_remedy_that_works(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    client = open_client(tmp_path / "store")
    for name in ("bad", "good"):
        ingest(_DOCUMENTS, collection=name, embedder=StandIn(), client=client)
    client.close()
    file = tmp_path / "store" / "collection" / "bad" / "storage.sqlite"
    damage(file)
    with pytest.raises(StoreError, match=rf"{file} is damaged .*delete it \(collection 'bad' is then empty\)"):
        open_client(tmp_path / "store")
    file.unlink()
    client = open_client(tmp_path / "store")
    assert (client.count("bad").count, client.count("good").count) == (0, 20)
    assert ingest(_DOCUMENTS, collection="bad", embedder=StandIn(), client=client).added == 20
    client.close()


@pytest.mark.parametrize(
    "point", [b"\x80\x05K", b"", b"cos\nnothing\n.", pickle.dumps("text"), pickle.dumps({"id": 1})]
)
def test_points_that_cannot_be_read_are_deleted_on_request_and_embedded_again(tmp_path: Path, point: bytes) -> None:
    client = open_client(tmp_path)
    ingest(_DOCUMENTS, collection="docs", embedder=StandIn(), client=client)
    client.close()
    file = tmp_path / "collection" / "docs" / "storage.sqlite"
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("UPDATE points SET point = ? WHERE rowid IN (3, 5)", (point,))
    remedy = rf"{file} is damaged .*gircse verify --collection docs --path {tmp_path} --repair"
    with pytest.raises(StoreError, match=remedy):
        open_client(tmp_path)
    with pytest.warns(GircseWarning, match="deleted 2 points of collection 'docs'"):
        client = open_client(tmp_path, repair=True)
    assert client.count("docs").count == 18
    assert ingest(_DOCUMENTS, collection="docs", embedder=StandIn(), client=client).embedded == 2
    assert verify("docs", client).damaged == []
    client.close()
