"""`gircse ingest --runner ray`, with a Ray that the command starts and a server over HTTP."""

from __future__ import annotations

import json
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gircse_rag.qdrant.ingestion import ray_runner
from tests.processes import interruptible
from tests.qdrant_shim import Shim
from tests.soak.kills import assert_same, read_state
from tests.unit.cli.conftest import Gircse
from tests.unit.cli.test_app import GIRCSE

ray = pytest.importorskip("ray", reason="needs gircse-rag[ray]")
pytest.importorskip("ray.data", reason="needs gircse-rag[ray]")
ROWS = 200
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]  # several Rays at once starve each other


def write_rows(folder: Path, count: int) -> None:
    rows = [{"key": n, "body": f"row {n} of a table.\n\nIt has {n % 7} legs and more words."} for n in range(count)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(autouse=True)
def ended_cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Ray folder of its own, where a cluster ended uncleanly: its address is still there."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="ray-") as name:  # Ray's sockets need a short path
        monkeypatch.setenv("RAY_TMPDIR", name)
        (Path(name) / "ray").mkdir()
        (Path(name) / "ray" / "ray_current_cluster").write_text("127.0.0.1:1")
        yield


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    write_rows(folder, ROWS)
    (folder / "guide.md").write_text("# Files\n\nOpen a file with open().\n\n# Lists\n\nSort a list with sorted().\n")
    (folder / "copy.txt").write_text("# Files\n\nOpen a file with open().\n\n# Lists\n\nSort a list with sorted().\n")
    (folder / "latin.txt").write_bytes(b"K\xe4fer")
    return folder


def test_two_workers_build_the_same_collection_as_one_process(
    gircse: Gircse, tiny_model: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uses every option that workers need: how to read rows, how to cut documents, and the source."""
    monkeypatch.setattr(ray_runner, "_DOCUMENTS_PER_PART", 32)  # several parts per worker
    options = ["--collection", "docs", "--text-field", "body", "--id-field", "key", "--chunk-tokens", "60"]
    options += ["--chunk-by", "headings", "--source", "mine", "--json", *tiny_model]
    with Shim() as single, Shim() as shim:
        expected = gircse("ingest", folder, "--url", single.url, *options)
        assert (expected.code, expected.json["added"]) == (1, ROWS + 2)
        assert expected.json["embedded"] > ROWS + 2 and expected.json["duplicated"] == 1
        ray_options = ["--url", shim.url, "--runner", "ray", "--workers", "2", *options]
        result = gircse("ingest", "in", *ray_options)
        assert result.code == 1 and not ray.is_initialized(), "the command did not shut down its Ray"
        notes = [line for line in result.err.splitlines() if not line.startswith("documents: ")]  # progress
        assert notes == expected.err.splitlines() and "latin.txt" in result.err
        ignored = {"seconds": 0, "retries": 0}
        assert result.json | ignored == expected.json | ignored
        with shim.paused(), single.paused():
            assert_same(read_state(shim.store), read_state(single.store), exact=False)
        (folder / "latin.txt").unlink()
        (folder / "copy.txt").unlink()
        again = gircse("ingest", folder, *ray_options, "--sync")
        assert (again.code, again.json["embedded"], again.json["unchanged"]) == (0, 0, ROWS + 1)
        assert (again.json["gone"], again.json["removed"]) == (["copy.txt"], 1)
        found = gircse("search", "a table", "--collection", "docs", "--url", shim.url, "--json", *tiny_model)
        scores = [hit["score"] for hit in found.json["hits"]]
        assert len(scores) == 5 and np.all(np.diff(scores) <= 0)


def test_sigterm_ends_an_ingest_on_ray_like_any_other(tiny_model: list[str], folder: Path, tmp_path: Path) -> None:
    write_rows(folder, 1200)  # enough that the signal comes before the end
    with Shim() as shim:
        command = ["ingest", str(folder), "--collection", "docs", "--url", shim.url, "--text-field", "body"]
        process = interruptible(
            [*GIRCSE, *command, "--runner", "ray", *tiny_model],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        while not any(path.endswith("/points") for _, path in shim.requests):
            assert process.poll() is None, process.communicate()
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (143, ""), err
        assert err.splitlines()[-1].startswith("interrupted: ") and "Traceback" not in err


@pytest.mark.parametrize("options", [[], ["--path", "store"]])
def test_an_embedded_store_is_refused(gircse: Gircse, tiny_model: list[str], folder: Path, options: list[str]) -> None:
    result = gircse("ingest", folder, "--collection", "docs", "--runner", "ray", *options, *tiny_model)
    assert (result.code, result.out) == (5, "") and "run a Qdrant server and give its --url" in result.err
    assert not (folder.parent / "store").exists() and not ray.is_initialized()
