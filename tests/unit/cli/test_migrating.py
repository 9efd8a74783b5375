"""`gircse migrate`: from one tiny model to another, in a folder and on a server."""

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
from tests.qdrant_shim import Shim
from tests.unit.cli.conftest import Gircse
from tests.unit.cli.test_app import GIRCSE

COUNT = 40


@pytest.fixture
def better(tiny_model: list[str], tmp_path: Path) -> list[str]:
    """The tiny model with another temperature: another vector space."""
    folder = tmp_path / "better"
    folder.mkdir()
    for file in Path(tiny_model[1]).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "gircse.json").write_text('{"temperature": 2.0}')
    return ["--model", str(folder), *tiny_model[2:]]


def _fill(gircse: Gircse, model: list[str], tmp_path: Path, store: list[str], count: int = COUNT) -> None:
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": f"text number {n}"}) + "\n" for n in range(count)))
    ran = gircse("ingest", "in.jsonl", "--collection", "old", *store, "--json", *model)
    assert (ran.code, ran.json["added"]) == (0, count)


@pytest.mark.parametrize("kind", ["local", "edge", "server"])
def test_a_collection_is_embedded_again_and_the_alias_answers(
    gircse: Gircse, tiny_model: list[str], better: list[str], tmp_path: Path, kind: str
) -> None:
    if kind == "edge":
        pytest.importorskip("qdrant_edge", reason="the edge extra is not installed")
    with Shim() as shim:
        store = ["--url", shim.url] if kind == "server" else ["--path", "store"]
        made = [] if kind == "server" else ["--store", kind]
        _fill(gircse, tiny_model, tmp_path, [*store, *made])
        ran = gircse("migrate", "old", "new", *store, "--alias", "current", "--json", *better)
        assert (ran.code, ran.err) == (0, "")
        expected = {"old": "old", "new": "new", "points": COUNT, "embedded": COUNT, "unchanged": 0, "failed": {}}
        assert {key: ran.json[key] for key in expected} == expected
        assert ran.json["alias_moved"] and ran.json["extra"] == 0 and ran.json["prompt_tokens"] > COUNT
        ask = ["search", "text number 7", *store, "--limit", "3", "--json"]
        found = gircse(*ask, "--collection", "current", *better)
        assert found.code == 0 and len(found.json["hits"]) == 3
        assert found.json["hits"] == gircse(*ask, "--collection", "new", *better).json["hits"]
        refused = gircse(*ask, "--collection", "current", *tiny_model)
        assert refused.code == 4 and "temperature" in refused.err
        assert gircse(*ask, "--collection", "old", *tiny_model).code == 0, "the old one answers as before"
        again = gircse("migrate", "old", "new", *store, "--alias", "current", *better)
        assert again.code == 0
        assert f"0 embedded (0 tokens), {COUNT} there already, 0 failed" in again.out
        assert "current is now new" in again.out


def test_an_interrupt_is_safe_and_the_same_command_goes_on(
    gircse: Gircse, tiny_model: list[str], better: list[str], tmp_path: Path
) -> None:
    count = 1000
    _fill(gircse, tiny_model, tmp_path, ["--path", "store"], count)
    command = ["migrate", "old", "new", "--path", "store", "--alias", "current"]
    process = subprocess.Popen(
        [*GIRCSE, *command, *better], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
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
    ran = gircse(*command, "--json", *better)
    assert (ran.code, ran.json["unchanged"], ran.json["embedded"]) == (0, stored, count - stored)
    assert ran.json["alias_moved"]


def test_a_point_that_cannot_be_embedded_is_named_and_the_exit_code_tells(
    gircse: Gircse, tiny_model: list[str], better: list[str], tmp_path: Path
) -> None:
    store = ["--path", "store"]
    _fill(gircse, tiny_model, tmp_path, store)
    with closing(open_client(tmp_path / "store")) as client:
        ((point, *_), _) = client.scroll("old", limit=1)
        client.set_payload("old", {"page_content": " "}, points=[point.id])
    ran = gircse("migrate", "old", "new", *store, "--alias", "current", "--json", *better)
    assert (ran.code, ran.json["embedded"], ran.json["alias_moved"]) == (1, COUNT - 1, False)
    assert list(ran.json["failed"]) == [point.id]
    assert f"failed: {point.id}: there is no text in its payload" in ran.err


def test_twenty_are_named_and_the_rest_counted(capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"name {number}" for number in range(30)]
    for count, last in ((20, "failed: name 19"), (30, "failed: and 10 more; --json names them")):
        note_some("failed", names[:count], count)
        assert capsys.readouterr().err.splitlines()[19:][-1] == last
    note_some("duplicate", names, 100)
    assert capsys.readouterr().err.splitlines()[19:] == [
        "duplicate: name 19",
        "duplicate: and 80 more; --json names them in part",
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["old", "old"], 5, "one collection"),
        (["nothing", "new"], 4, "there is no collection 'nothing' (there is: old)"),
        (["old", "new", "--alias", "old"], 4, "no alias of that name"),
        (["old", "a/b"], 5, "cannot be called 'a/b'"),
        (["old"], 2, "Missing argument"),
    ],
)
def test_what_cannot_be_migrated_is_refused(
    gircse: Gircse, tiny_model: list[str], tmp_path: Path, arguments: list[str], code: int, said: str
) -> None:
    _fill(gircse, tiny_model, tmp_path, ["--path", "store"], 1)
    ran = gircse("migrate", *arguments, "--path", "store", *tiny_model)
    assert (ran.code, ran.out) == (code, "") and said in ran.err


def test_without_a_store_it_says_so(gircse: Gircse, tiny_model: list[str]) -> None:
    ran: Any = gircse("migrate", "old", "new", "--path", "nowhere", *tiny_model)
    assert ran.code == 4 and "there is no Qdrant store in nowhere" in ran.err
