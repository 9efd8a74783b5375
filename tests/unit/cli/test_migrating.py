"""`gircse migrate` from one tiny model to another, in a folder and on a server."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from gircse_rag.cli.output import note_some
from gircse_rag.qdrant import open_client
from tests.processes import interruptible
from tests.qdrant_shim import Shim
from tests.unit.cli.conftest import Gircse
from tests.unit.cli.test_app import GIRCSE

pytestmark = pytest.mark.slow  # every test embeds collections

COUNT = 40


@pytest.fixture
def new_model(tiny_model: list[str], tmp_path: Path) -> list[str]:
    """The options that select the tiny model with another temperature, and so another vector space."""
    folder = tmp_path / "new_model"
    folder.mkdir()
    for file in Path(tiny_model[1]).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "gircse.json").write_text('{"temperature": 2.0}')
    return ["--model", str(folder), *tiny_model[2:]]


def _fill(gircse: Gircse, model: list[str], tmp_path: Path, store: list[str], count: int = COUNT) -> None:
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": f"text number {n}"}) + "\n" for n in range(count)))
    result = gircse("ingest", "in.jsonl", "--collection", "old", *store, "--json", *model)
    assert (result.code, result.json["added"]) == (0, count)


@pytest.mark.parametrize("kind", ["local", "edge", "server"])
def test_a_collection_is_embedded_again_and_the_alias_moves(
    gircse: Gircse, tiny_model: list[str], new_model: list[str], tmp_path: Path, kind: str
) -> None:
    if kind == "edge":
        pytest.importorskip("qdrant_edge", reason="the edge extra is not installed")
    with Shim() as shim:
        store = ["--url", shim.url] if kind == "server" else ["--path", "store"]
        engine = [] if kind == "server" else ["--store", kind]
        _fill(gircse, tiny_model, tmp_path, [*store, *engine])
        result = gircse("migrate", "old", "new", *store, "--alias", "current", "--json", *new_model)
        assert (result.code, result.err) == (0, "")
        expected = {"old": "old", "new": "new", "points": COUNT, "embedded": COUNT, "unchanged": 0, "failed": {}}
        assert {key: result.json[key] for key in expected} == expected
        assert result.json["alias_moved"] and result.json["extra"] == 0 and result.json["prompt_tokens"] > COUNT
        ask = ["search", "text number 7", *store, "--limit", "3", "--json"]
        found = gircse(*ask, "--collection", "current", *new_model)
        assert found.code == 0 and len(found.json["hits"]) == 3
        assert found.json["hits"] == gircse(*ask, "--collection", "new", *new_model).json["hits"]
        refused = gircse(*ask, "--collection", "current", *tiny_model)
        assert refused.code == 4 and "temperature" in refused.err
        assert gircse(*ask, "--collection", "old", *tiny_model).code == 0, "the old collection no longer answers"
        again = gircse("migrate", "old", "new", *store, "--alias", "current", *new_model)
        assert again.code == 0
        assert f"0 embedded (0 tokens), {COUNT} unchanged, 0 failed" in again.out
        assert "alias current now points at new" in again.out


@pytest.mark.slow
def test_an_interrupted_migration_is_resumed_by_the_same_command(
    gircse: Gircse, tiny_model: list[str], new_model: list[str], tmp_path: Path
) -> None:
    count = 1000
    _fill(gircse, tiny_model, tmp_path, ["--path", "store"], count)
    command = ["migrate", "old", "new", "--path", "store", "--alias", "current"]
    process = interruptible(
        [*GIRCSE, *command, *new_model], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    file = tmp_path / "store" / "collection" / "new" / "storage.sqlite"
    while not (file.exists() and file.stat().st_size > 100_000):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert (process.returncode, out) == (130, ""), err
    assert err.startswith("interrupted: ") and err.count("\n") == 1
    with closing(open_client(tmp_path / "store")) as client:
        stored = client.count("new").count
        assert client.get_aliases().aliases == []
    assert 0 < stored < count
    result = gircse(*command, "--json", *new_model)
    assert (result.code, result.json["unchanged"], result.json["embedded"]) == (0, stored, count - stored)
    assert result.json["alias_moved"]


def test_a_point_that_cannot_be_embedded_is_reported_and_exits_1(
    gircse: Gircse, tiny_model: list[str], new_model: list[str], tmp_path: Path
) -> None:
    store = ["--path", "store"]
    _fill(gircse, tiny_model, tmp_path, store)
    with closing(open_client(tmp_path / "store")) as client:
        ((point, *_), _) = client.scroll("old", limit=1)
        client.set_payload("old", {"page_content": " "}, points=[point.id])
    result = gircse("migrate", "old", "new", *store, "--alias", "current", "--json", *new_model)
    assert (result.code, result.json["embedded"], result.json["alias_moved"]) == (1, COUNT - 1, False)
    assert list(result.json["failed"]) == [point.id]
    assert f"failed: {point.id}: there is no text in its payload" in result.err


def test_note_some_lists_twenty_and_counts_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"name {number}" for number in range(30)]
    for count, last in ((20, "failed: name 19"), (30, "failed: and 10 more; --json lists them")):
        note_some("failed", names[:count], count)
        assert capsys.readouterr().err.splitlines()[19:][-1] == last
    note_some("duplicate", names, 100)
    assert capsys.readouterr().err.splitlines()[19:] == [
        "duplicate: name 19",
        "duplicate: and 80 more; --json lists some of them",
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["old", "old"], 5, "one collection"),
        (["nothing", "new"], 4, "there is no collection 'nothing' (there is: old)"),
        (["old", "new", "--alias", "old"], 4, "no alias of that name"),
        (["old", "a/b"], 5, "cannot be called 'a/b'"),
        (["old"], 5, "give the name of the new collection, or --add-lexical"),
    ],
)
def test_invalid_migrations_are_refused(
    gircse: Gircse, tiny_model: list[str], tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    _fill(gircse, tiny_model, tmp_path, ["--path", "store"], 1)
    result = gircse("migrate", *arguments, "--path", "store", *tiny_model)
    assert (result.code, result.out) == (code, "") and message in result.err


def test_a_missing_store_exits_4(gircse: Gircse, tiny_model: list[str]) -> None:
    result: Any = gircse("migrate", "old", "new", "--path", "nowhere", *tiny_model)
    assert result.code == 4 and "there is no Qdrant store in nowhere" in result.err


def test_add_lexical_changes_the_collection_itself(gircse: Gircse, tiny_model: list[str], tmp_path: Path) -> None:
    store = ["--path", "store"]
    _fill(gircse, tiny_model, tmp_path, store)
    with closing(open_client(tmp_path / "store")) as client:  # as an earlier version made it
        client.delete_vector_name("old", "bm25")
        metadata = client.get_collection("old").config.metadata
        assert metadata is not None
        del metadata["gircse"]["lexical"]
        client.update_collection("old", metadata=metadata)
    search = ["search", "number 7", "--collection", "old", *store, "--json", *tiny_model]
    before = gircse(*search)
    assert before.code == 0 and "gircse migrate old --add-lexical" in before.err
    assert gircse(*search, "--mode", "lexical").code != 0
    result = gircse("migrate", "old", "--add-lexical", *store, "--json")
    assert (result.code, result.json["points"], result.json["encoded"]) == (0, COUNT, COUNT)
    after = gircse(*search)
    assert after.err == "" and after.json["hits"][0]["text"] == "text number 7"
    again = gircse("migrate", "old", "--add-lexical", *store)
    assert again.code == 0 and f"{COUNT} points, 0 got a lexical vector" in again.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["old"], "give the name of the new collection, or --add-lexical"),
        (["old", "new", "--add-lexical"], "leave out NEW and --alias"),
        (["old", "--add-lexical", "--alias", "a"], "leave out NEW and --alias"),
    ],
)
def test_contradictory_arguments_are_refused(gircse: Gircse, arguments: list[str], message: str) -> None:
    result = gircse("migrate", *arguments)
    assert result.code != 0 and message in result.err
